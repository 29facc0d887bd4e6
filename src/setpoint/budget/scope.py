"""Who holds a budget: the whole model, each layer, or the layers the user names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any

import torch

from setpoint.budget.budget import Budget
from setpoint.budget.erk import erk_budgets
from setpoint.budget.rounding import achievable
from setpoint.budget.shares import Share, common_cost, join
from setpoint.budget.target import Cost, Target, check_sparsity
from setpoint.budget.whole import SeparateCosts, WholeCost
from setpoint.options import choice, whole_number
from setpoint.suggestions import did_you_mean
from setpoint.units import Layer
from setpoint.wiring import BRANCHES

Scope = str | Mapping[str, float]

_NAMES = ("global", "uniform", "erk")


def as_scope(scope: Any) -> Scope:
    """A scope as one of the names, or as a dict from globs to sparsities.

    Raises:
        ValueError: for what is neither.
    """
    if isinstance(scope, str):
        choice("scope", scope, _NAMES)
        return scope
    if not isinstance(scope, Mapping):
        raise ValueError(
            f"scope={scope!r} must be one of {', '.join(_NAMES)}, or a mapping of globs to sparsities, such as "
            "{'layer4.*': 0.95}"
        )
    if not scope:
        raise ValueError(f"scope={{}} names no layer; possible: {', '.join(_NAMES)}, or globs such as {{'fc.*': 0.5}}")
    found: dict[str, float] = {}
    for glob, sparsity in scope.items():
        if not isinstance(glob, str):
            raise ValueError(f"scope={dict(scope)!r}: {glob!r} is no glob of parameter names, such as 'layer4.*'")
        read = check_sparsity(f"scope glob {glob!r}: sparsity", sparsity)
        if read is None:
            raise ValueError(f"scope glob {glob!r}: sparsity=None must be a number; leave layers dense by exclude=")
        found[glob] = read
    return found


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

    What may stay is never exceeded (`Target.never_exceeded`). A sparsity is met to the nearest achievable count where
    all units that share a budget cost the same; otherwise the kept cost stays within it. No further unit fits.

    Args:
        layers: the layers to make sparse.
        target: what is asked for; None asks for all that the units can give, which only patterns (N:M) bound.
        scope: `"global"`, one budget for all; `"uniform"`, the same fraction in each layer, each rounded for itself;
            `"erk"`, densities in proportion to (sum of a weight's sizes) / (their product), with the budget met over
            all layers (U. Evci et al., "Rigging the lottery", ICML 2020, section 3); or a mapping from globs of
            parameter names to sparsities: each layer follows the first glob that fits it, and the target where none
            does (without a target it stays dense and is not counted).
        floor: units that no layer may lose.
        rates: by layer, what one of its entries costs, where that is not 1.
        whole: the model's cost by the number of units that stay in each layer, or what each unit adds to it, for units
            that cross layers.

    Raises:
        ValueError: if the budget is not possible, naming what is; if a glob fits no layer.
    """
    scope, floor = as_scope(scope), whole_number("floor", floor, 0, "a number of units")
    _check_floor(layers, floor)
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
    _check_costs(shares, cost, scope)
    if not isinstance(scope, str):
        return _by_glob(shares, target, scope)
    if target is None:
        return tuple(_of_pattern(share) for share in shares) if _bounded(shares) else ()
    if scope == "erk":
        return erk_budgets(shares, target)
    stays = target.may_stay(sum(s.total for s in shares))
    groups = [[share] for share in shares] if scope == "uniform" else [shares]
    return tuple(_part_of(group, stays, within=target.never_exceeded) for group in groups)


def _part_of(shares: Sequence[Share], stays: Fraction, *, within: bool) -> Budget:
    """The budget of some layers of which a fraction may stay."""
    kept = float(stays * Fraction(sum(s.total for s in shares)))
    return join(shares, kept, float(1 - stays), within=within)


def _of_pattern(share: Share) -> Budget:
    """All that a pattern allows."""
    return join([share], share.fixed, 1.0 - share.fixed / share.total, within=True)


def _check_floor(layers: Sequence[Layer], floor: int) -> None:
    """Refuse that a width may become 0, which no smaller model has. Of residual branches all may go."""
    width = next((la.name for la in layers if la.name != BRANCHES and any(p.reads for p in la.parts)), None)
    if floor == 0 and width is not None:
        raise ValueError(
            f"floor=0 lets all units of {width!r} go, but no tensor of the smaller model can have a width of 0; "
            "possible: floor=1 or more"
        )


def _check_costs(shares: Sequence[Share], cost: Cost, scope: Scope) -> None:
    """Refuse layers that cost nothing, of which no part can go."""
    free = [s.layer.name for s in shares if s.total <= 0.0]
    if free and (scope != "global" or len(free) == len(shares)):
        raise ValueError(
            f"the layers {', '.join(free)} cost no {cost} on the example inputs: leave them out by exclude=, or choose "
            "another cost"
        )


def _of_widths(layers: Sequence[Layer], target: Target | None, scope: Scope, floor: int, whole: WholeCost) -> Budget:
    """One budget for all, in which what a unit costs depends on what else stays."""
    target = _of_whole_model(target, scope)
    counts = [math.prod(layer.counts) for layer in layers]
    multiple = target.multiple_of
    floors = tuple(min(-(-floor // multiple) * multiple, n) for n in counts)
    total, least = whole(counts), whole(floors)
    kept, requested = target.kept(total), float(1 - target.may_stay(total))
    if least > kept * (1 + 1e-12):
        raise _too_much(target, kept, total, least, max(floors))
    everything = [torch.ones(n, dtype=torch.bool) for n in counts]
    indices = tuple(range(len(layers)))
    budget = Budget(indices, (), floors, total, 0.0, min(kept, total), requested, whole, multiple)
    return replace(budget, costs=tuple(budget.prices(everything)))


def _of_separate(
    layers: Sequence[Layer], target: Target | None, scope: Scope, floor: int, whole: SeparateCosts
) -> Budget:
    """One budget for all, of a whole model to which each unit adds a cost of its own."""
    target = _of_whole_model(target, scope)
    costs = [c.expand(layer.counts).flatten() for c, layer in zip(whole.units, layers)]
    floors = [min(floor, c.numel()) for c in costs]
    # The largest units stay, dear as they may be. A single one does so by itself, as no unit is left out that fits.
    held = tuple(n if n > 1 else 0 for n in floors)
    least = whole.fixed + sum(float(c.topk(n, largest=n > 1).values.sum()) for c, n in zip(costs, floors))
    total = whole.fixed + sum(float(c.sum()) for c in costs)
    kept, requested = target.kept(total), float(1 - target.may_stay(total))
    unit = common_cost(costs)
    found: float | None = kept if least <= kept * (1 + 1e-12) else None
    if unit is not None:
        within, n = target.never_exceeded, sum(floors)
        found = achievable(kept, total=total, fixed=whole.fixed, unit=unit, floor=n, within=within)
    if found is None:
        raise _too_much(target, kept, total, least, max(floors))
    indices = tuple(range(len(layers)))
    return Budget(indices, whole.units, held, total, whole.fixed, min(found, total), requested)


def _of_whole_model(target: Target | None, scope: Scope) -> Target:
    if scope != "global":
        raise ValueError(
            f"scope={scope!r} divides a budget among layers, but what lies between two layers belongs to both: "
            "possible are scope='global', or a target counted in units"
        )
    if target is None or not target.has_budget:
        raise ValueError("no target was given: say how much is to go, such as target=0.5")
    return target


def _too_much(target: Target, kept: float, total: float, least: float, floor: int) -> ValueError:
    return ValueError(
        f"{target}: {kept:,.10g} of the model's {total:,.10g} {target.counted} may stay, but at least {least:,.10g} "
        f"do, at a floor of {floor} unit(s) a layer: choose more units, a larger budget or a lower floor"
    )


def _bounded(shares: Sequence[Share]) -> bool:
    if all(s.fixed for s in shares):
        return True
    raise ValueError("no target was given: say how much is to go, such as target=0.9")


def _by_glob(shares: Sequence[Share], target: Target | None, scope: Mapping[str, float]) -> tuple[Budget, ...]:
    names = [s.layer.name for s in shares]
    for glob in scope:
        if not any(fnmatchcase(name, glob) for name in names):
            nearest = did_you_mean(glob, names)
            raise ValueError(f"scope glob {glob!r} matches no layer; possible: {', '.join(names)}{nearest}")
    if target is not None and target.has_budget and target.sparsity is None:
        raise ValueError(f"a scope of globs takes a target sparsity for the other layers, not {target}")
    budgets = []
    for share in shares:
        rest = target.sparsity if target is not None else None
        wanted = next((s for glob, s in scope.items() if fnmatchcase(share.layer.name, glob)), rest)
        if wanted is not None:
            stays = Target(sparsity=wanted).may_stay(share.total)
            budgets.append(_part_of([share], stays, within=False))
    return tuple(budgets)
