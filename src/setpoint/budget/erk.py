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
    total = sum(s.total for s in shares)
    asked = target.kept(total)
    kept_in_all = join(shares, asked, 0.0, within=target.never_exceeded).kept
    shapes = [s.layer.partition.layout.product for s in shares]
    densities = erk_densities(shapes, [s.total for s in shares], asked / total)
    wanted = [max(s.total * d, s.least) for s, d in zip(shares, densities)]
    budgets = [_whole_units(s, w) for s, w in zip(shares, wanted)]
    kept = [b.kept for b in budgets]
    # Floors may have raised some layers: the densest give way.
    slack = max(1e-9, total * 2.0**-50)
    kept = _lowered(shares, kept, sum(kept) - kept_in_all, slack)
    kept = _raised(shares, kept, wanted, kept_in_all - sum(kept), slack)
    return tuple(replace(b, kept=k, requested=1.0 - d) for b, k, d in zip(budgets, kept, densities))


def _whole_units(share: Share, kept: float) -> Budget:
    return join([share], max(kept, share.least), 0.0, within=True)


def _lowered(shares: Sequence[Share], kept: list[float], excess: float, slack: float) -> list[float]:
    kept = list(kept)
    while excess > slack:
        index = max(range(len(shares)), key=lambda i: (kept[i] - shares[i].least) / shares[i].total)
        step = common_cost([shares[index].costs]) or excess
        lower = max(kept[index] - step, shares[index].least)
        if lower == kept[index]:
            break
        excess -= kept[index] - lower
        kept[index] = lower
    return kept


def _raised(shares: Sequence[Share], kept: list[float], wanted: list[float], room: float, slack: float) -> list[float]:
    kept = list(kept)
    steps = [common_cost([s.costs]) or math.inf for s in shares]
    while True:
        fits = [i for i, s in enumerate(shares) if steps[i] <= room + slack and kept[i] < s.total - slack]
        if not fits:
            return kept
        index = max(fits, key=lambda i: (wanted[i] - kept[i]) / steps[i])
        kept[index] += steps[index]
        room -= steps[index]
