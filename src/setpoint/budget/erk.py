"""Densities by layer after Erdos and Renyi, in whole units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from setpoint.budget.budget import Budget
from setpoint.budget.shares import Share, common_cost, join
from setpoint.budget.target import Target


def erk_densities(shapes: Sequence[Sequence[int]], sizes: Sequence[float], density: float) -> list[float]:
    """Erdos-Renyi-kernel densities: `eps * sum(shape) / prod(shape)`, at most 1, that meet `density` on average.

    Args:
        shapes: of the weights.
        sizes: what each weight counts in the average.
        density: to meet over all, in (0, 1].
    """
    raw = [sum(shape) / math.prod(shape) for shape in shapes]
    dense: set[int] = set()
    while True:
        room = density * sum(sizes) - sum(sizes[i] for i in dense)
        open_ = [i for i in range(len(raw)) if i not in dense]
        scale = room / sum(raw[i] * sizes[i] for i in open_) if open_ else 0.0
        full = {i for i in open_ if raw[i] * scale > 1.0}
        if not full:
            return [1.0 if i in dense else raw[i] * scale for i in range(len(raw))]
        dense |= full


def erk_budgets(shares: Sequence[Share], target: Target) -> tuple[Budget, ...]:
    """Budgets per layer whose sum meets the target: whole units, the remainder to the layers cut shortest."""
    whole = join(shares, target.kept(sum(s.total for s in shares)), 0.0)
    shapes = [s.layer.partition.layout.product for s in shares]
    densities = erk_densities(shapes, [s.total for s in shares], whole.kept / whole.total)
    wanted = [max(s.total * d, s.least) for s, d in zip(shares, densities)]
    budgets = [_whole_units(s, w) for s, w in zip(shares, wanted)]
    kept = [b.kept for b in budgets]
    # Floors may have raised some layers: the densest give way.
    kept = _lowered(shares, kept, sum(kept) - whole.kept)
    kept = _raised(shares, kept, wanted, whole.kept - sum(kept))
    return tuple(replace(b, kept=k, requested=1.0 - k / b.total) for b, k in zip(budgets, kept))


def _whole_units(share: Share, kept: float) -> Budget:
    unit = common_cost([share])
    if unit is not None:
        kept = share.fixed + unit * math.floor((kept - share.fixed) / unit + 1e-9)
    return join([share], max(kept, share.least), 0.0)


def _lowered(shares: Sequence[Share], kept: list[float], excess: float) -> list[float]:
    kept = list(kept)
    while excess > 1e-9:
        index = max(range(len(shares)), key=lambda i: (kept[i] - shares[i].least) / shares[i].total)
        step = common_cost([shares[index]]) or excess
        kept[index] = max(kept[index] - step, shares[index].least)
        excess -= step
    return kept


def _raised(shares: Sequence[Share], kept: list[float], wanted: list[float], room: float) -> list[float]:
    kept = list(kept)
    while True:
        fits = [
            i
            for i, s in enumerate(shares)
            if (common_cost([s]) or math.inf) <= room + 1e-9 and kept[i] < s.total - 1e-9
        ]
        if not fits:
            return kept
        index = max(fits, key=lambda i: (wanted[i] - kept[i]) / (common_cost([shares[i]]) or 1.0))
        step = common_cost([shares[index]]) or 0.0
        kept[index] += step
        room -= step
