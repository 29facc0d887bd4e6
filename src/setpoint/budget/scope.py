"""Who holds a budget: the whole model, each layer, or the layers the user names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import torch

from setpoint.budget.budget import Budget
from setpoint.budget.erk import erk_budgets
from setpoint.budget.shares import Share, join
from setpoint.budget.target import Cost, Target
from setpoint.budget.whole import SeparateCosts, WholeCost
from setpoint.units import Layer

Scope = str | Mapping[str, float]


def allocate(
    layers: Sequence[Layer],
    target: Target | None,
    scope: Scope = "global",
    floor: int = 1,
    *,
    rates: Mapping[str, float] | None = None,
    whole: WholeCost | SeparateCosts | None = None,
) -> tuple[Budget, ...]:
    """Divide the target among the layers.

    A fraction is met to the nearest achievable count where all units that share a budget cost the same; otherwise
    the kept cost stays within the budget and no further unit fits.

    Args:
        layers: the layers to make sparse.
        target: what is asked for; None asks for all that the units can give, which only patterns (N:M) bound.
        scope: `"global"`, one budget for all; `"uniform"`, the same fraction in each layer; `"erk"`, densities in
            proportion to (sum of a weight's sizes) / (their product), with the budget met over all layers (U. Evci
            et al., "Rigging the lottery", ICML 2020, section 3); or a mapping from globs of parameter names to
            sparsities: each layer follows the first glob that fits it, and the target where none does (without a
            target it stays dense and is not counted).
        floor: units that no layer may lose.
        rates: by layer, what one of its entries costs, where that is not 1.
        whole: the model's cost by the number of units that stay in each layer, or what each unit adds to it, for units
            that cross layers.

    Raises:
        ValueError: if the budget is not possible, naming what is; if a glob fits no layer.
    """
    if floor < 0:
        raise ValueError(f"floor={floor} must be a number of units >= 0")
    if isinstance(scope, str) and scope not in ("global", "uniform", "erk"):
        raise ValueError(f"scope={scope!r} is none of global, uniform, erk, or a mapping of globs to sparsities")
    if target is not None and target.multiple_of > 1 and (whole is None or isinstance(whole, SeparateCosts)):
        raise ValueError(
            f"multiple_of={target.multiple_of} rounds the widths of a smaller model: it takes units that cross layers "
            "(unit='channel', 'neuron' or 'head') and scope='global'"
        )
    cost: Cost = "params" if target is None else target.counted
    if isinstance(whole, SeparateCosts):
        return (_of_separate(layers, target, scope, floor, whole),)
    if whole is not None:
        return (_of_widths(layers, target, scope, floor, whole),)
    shares = [
        Share.of(i, layer, cost, floor, 1.0 if rates is None else rates[layer.name]) for i, layer in enumerate(layers)
    ]
    if not isinstance(scope, str):
        return _by_glob(shares, target, scope)
    if target is None:
        return tuple(join([share], share.fixed, 1.0) for share in shares) if _bounded(shares) else ()
    if scope == "uniform":
        fraction = target.kept(sum(s.total for s in shares)) / sum(s.total for s in shares)
        return tuple(join([s], s.total * fraction, 1.0 - fraction) for s in shares)
    if scope == "erk":
        return erk_budgets(shares, target)
    total = sum(s.total for s in shares)
    return (join(shares, target.kept(total), 1.0 - target.kept(total) / total),)


def _of_widths(layers: Sequence[Layer], target: Target | None, scope: Scope, floor: int, whole: WholeCost) -> Budget:
    """One budget for all, in which what a unit costs depends on what else stays."""
    target = _of_whole_model(target, scope)
    counts = [math.prod(layer.counts) for layer in layers]
    multiple = target.multiple_of
    floors = [min(-(-floor // multiple) * multiple, n) for n in counts]
    total, least = whole(counts), whole(floors)
    kept = target.kept(total)
    _check_possible(target, kept, total, least, max(floors))
    everything = [torch.ones(n, dtype=torch.bool) for n in counts]
    budget = Budget(
        tuple(range(len(layers))), (), tuple(floors), total, 0.0, min(kept, total), 1.0 - kept / total, whole, multiple
    )
    return replace(budget, costs=tuple(budget.prices(everything)))


def _of_separate(
    layers: Sequence[Layer], target: Target | None, scope: Scope, floor: int, whole: SeparateCosts
) -> Budget:
    """One budget for all, of a whole model to which each unit adds a cost of its own."""
    target = _of_whole_model(target, scope)
    costs = [c.expand(layer.counts).flatten() for c, layer in zip(whole.units, layers)]
    floors = [min(floor, c.numel()) for c in costs]
    # The largest units stay, dear as they may be. A single one does so by itself, as no unit is left out that fits.
    held = [n if n > 1 else 0 for n in floors]
    least = whole.fixed + sum(float(c.topk(n, largest=n > 1).values.sum()) for c, n in zip(costs, floors))
    total = whole.fixed + sum(float(c.sum()) for c in costs)
    kept = target.kept(total)
    _check_possible(target, kept, total, least, max(floors))
    return Budget(
        tuple(range(len(layers))), whole.units, tuple(held), total, whole.fixed, min(kept, total), 1.0 - kept / total
    )


def _of_whole_model(target: Target | None, scope: Scope) -> Target:
    if scope != "global":
        raise ValueError(
            f"scope={scope!r} divides a budget among layers, but what lies between two layers belongs to both: "
            "possible are scope='global', or a target counted in units"
        )
    if target is None or not target.has_budget:
        raise ValueError("no target was given: say how much is to go, such as target=0.5")
    return target


def _check_possible(target: Target, kept: float, total: float, least: float, floor: int) -> None:
    if least > kept:
        raise ValueError(
            f"{target}: {kept:g} of the model's {total:g} {target.counted} may stay, but at least {least:g} do, at a "
            f"floor of {floor} unit(s) a layer: choose more units, a larger budget or a lower floor"
        )


def _bounded(shares: Sequence[Share]) -> bool:
    if all(s.fixed for s in shares):
        return True
    raise ValueError("no target was given: say how much is to go, such as target=0.9")


def _by_glob(shares: Sequence[Share], target: Target | None, scope: Mapping[str, float]) -> tuple[Budget, ...]:
    for glob, sparsity in scope.items():
        Target(sparsity=sparsity)
        if not any(fnmatchcase(s.layer.name, glob) for s in shares):
            possible = ", ".join(s.layer.name for s in shares)
            raise ValueError(f"scope glob {glob!r} matches no layer; possible: {possible}")
    if target is not None and target.has_budget and target.sparsity is None:
        raise ValueError(f"a scope of globs takes a target sparsity for the other layers, not {target}")
    budgets = []
    for share in shares:
        rest = target.sparsity if target is not None else None
        wanted = next((s for glob, s in scope.items() if fnmatchcase(share.layer.name, glob)), rest)
        if wanted is not None:
            budgets.append(join([share], share.total * (1.0 - wanted), wanted))
    return tuple(budgets)
