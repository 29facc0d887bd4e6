"""Who holds a budget: the whole model, each layer, or the layers the user names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from setpoint.budget.target import Cost, Target
from setpoint.budget.whole import SeparateCosts, WholeCost
from setpoint.functional.budget import project_budget
from setpoint.functional.budget_widths import project_widths
from setpoint.reading import read
from setpoint.units import Layer

Scope = str | Mapping[str, float]


@dataclass(frozen=True)
class Budget:
    """How much the units of some layers may cost together.

    Attributes:
        layers: positions of the layers that share it.
        costs: of each layer's units, float64, broadcastable to the partition's counts.
        floors: how many units each layer keeps in any case.
        total: cost of everything.
        fixed: cost of what belongs to no unit (the N of an N:M pattern).
        kept: cost that may stay in the end, the fixed part included.
        requested: fraction of the cost that was asked to go.
        whole: the cost of everything by the number of units that stay in each layer, where a unit's cost depends on
            the others'; `costs` are then those at full width.
        multiple: how many units of a layer go or stay at a time; only with `whole`.
    """

    layers: tuple[int, ...]
    costs: tuple[Tensor, ...]
    floors: tuple[int, ...]
    total: float
    fixed: float
    kept: float
    requested: float
    whole: WholeCost | None = None
    multiple: int = 1

    def cut(self, scores: Sequence[Tensor], ramp: float) -> list[Tensor]:
        """Which units stay once the budget has gone `ramp` of its way: boolean tensors shaped as the scores."""
        if self.whole is not None:
            return project_widths(scores, self.room(ramp), self.whole, floors=self.floors, multiple=self.multiple)
        return project_budget(scores, self.room(ramp), self.costs, floors=self.floors)

    def prices(self, kept: Sequence[Tensor]) -> list[Tensor]:
        """What one unit of each layer costs, beside those that are kept."""
        if self.whole is None:
            return list(self.costs)
        widths = _widths(kept)
        here = self.whole(widths)
        prices = []
        for i, k in enumerate(kept):
            step = 1 if widths[i] < k.numel() else -1
            there = self.whole([*widths[:i], widths[i] + step, *widths[i + 1 :]])
            prices.append(torch.tensor(step * (there - here), dtype=torch.float64))
        return prices

    def spent(self, kept: Sequence[Tensor]) -> float:
        """The cost of what is kept, the fixed part included."""
        if self.whole is not None:
            return self.whole(_widths(kept))
        return self.fixed + sum(float(c.expand(k.shape)[k].sum()) for c, k in zip(self.costs, (k.cpu() for k in kept)))

    def next_cost(self, kept: Sequence[Tensor]) -> float | None:
        """What the cheapest unit that went would cost, or the cheapest step of width; None if all stay."""
        if self.whole is None:
            gone = [c.expand(k.shape)[~k] for c, k in zip(self.costs, (k.cpu() for k in kept))]
            found = [float(g[g > 0].min()) for g in gone if bool((g > 0).any())]
        else:
            widths, here = _widths(kept), self.spent(kept)
            after = [min(w - w % self.multiple + self.multiple, k.numel()) for w, k in zip(widths, kept)]
            found = [
                self.whole([*widths[:i], a, *widths[i + 1 :]]) - here
                for i, (a, w) in enumerate(zip(after, widths))
                if a > w
            ]
        return min(found, default=None)

    def room(self, ramp: float) -> float:
        """Cost that the units may have once the budget has gone `ramp` of its way, in [0, 1]."""
        return self.total - (self.total - self.kept) * ramp - self.fixed


def _widths(kept: Sequence[Tensor]) -> list[int]:
    return [int(width) for width in read([k.sum() for k in kept])]


def unit_costs(layer: Layer, cost: Cost) -> Tensor:
    """What each unit costs. Units of patterns that keep a part of themselves count their entries in any case."""
    if cost == "units" and not layer.rest:
        return torch.tensor(1.0, dtype=torch.float64)
    return layer.sizes()


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
    each = [
        _Part.of(i, layer, cost, floor, 1.0 if rates is None else rates[layer.name]) for i, layer in enumerate(layers)
    ]
    if not isinstance(scope, str):
        return _by_glob(each, target, scope)
    if target is None:
        return tuple(_join([part], part.fixed, 1.0) for part in each) if _bounded(each) else ()
    if scope == "uniform":
        share = target.kept(sum(p.total for p in each)) / sum(p.total for p in each)
        return tuple(_join([p], p.total * share, 1.0 - share) for p in each)
    if scope == "erk":
        return _erk(each, target)
    total = sum(p.total for p in each)
    return (_join(each, target.kept(total), 1.0 - target.kept(total) / total),)


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


def in_budgets(layers: Sequence[Layer], budgets: Sequence[Budget]) -> tuple[tuple[Layer, ...], tuple[Budget, ...]]:
    """The layers that hold or share a budget, and the budgets with their positions among these."""
    used = sorted({i for b in budgets for i in b.layers})
    place = {old: new for new, old in enumerate(used)}
    moved = tuple(replace(b, layers=tuple(place[i] for i in b.layers)) for b in budgets)
    return tuple(layers[i] for i in used), moved


@dataclass(frozen=True)
class _Part:
    """One layer's share of the accounts."""

    index: int
    layer: Layer
    costs: Tensor
    floor: int
    total: float
    fixed: float

    @classmethod
    def of(cls, index: int, layer: Layer, cost: Cost, floor: int, rate: float = 1.0) -> _Part:
        costs, count, rest = unit_costs(layer, cost) * rate, math.prod(layer.counts), layer.rest * rate
        movable = float(costs) * count if costs.ndim == 0 else float(costs.expand(layer.counts).sum())
        return cls(index, layer, costs, 0 if rest else min(floor, count), movable + rest, float(rest))

    @property
    def dearest(self) -> float:
        return float(self.costs.max())

    @property
    def least(self) -> float:
        """Cost that stays in any case."""
        return self.fixed + self.floor * self.dearest


def _bounded(parts: Sequence[_Part]) -> bool:
    if all(p.fixed for p in parts):
        return True
    raise ValueError("no target was given: say how much is to go, such as target=0.9")


def _join(parts: Sequence[_Part], kept: float, requested: float) -> Budget:
    """One budget for some layers, rounded to what is achievable."""
    total, fixed = sum(p.total for p in parts), sum(p.fixed for p in parts)
    least = sum(p.least for p in parts)
    unit = _common_cost(parts)
    if unit is not None:
        wanted = (kept - fixed) / unit
        count = max(round(wanted), sum(p.floor for p in parts))
        if count > math.ceil(wanted - 1e-9):
            raise _impossible(parts, kept, total, least)
        kept = fixed + unit * min(count, round((total - fixed) / unit))
    elif least > kept * (1 + 1e-12):
        raise _impossible(parts, kept, total, least)
    return Budget(
        tuple(p.index for p in parts),
        tuple(p.costs for p in parts),
        tuple(p.floor for p in parts),
        total,
        fixed,
        min(kept, total),
        requested,
    )


def _common_cost(parts: Sequence[_Part]) -> float | None:
    costs = {float(c) for p in parts for c in (p.costs.min(), p.costs.max())}
    return costs.pop() if len(costs) == 1 and 0.0 not in costs else None


def _impossible(parts: Sequence[_Part], kept: float, total: float, least: float) -> ValueError:
    where = f"layer {parts[0].layer.name!r}" if len(parts) == 1 else f"{len(parts)} layers together"
    return ValueError(
        f"{where}: a sparsity of {1 - kept / total:.6g} was asked for (keep {kept:g} of {total:g}), but at most "
        f"{1 - least / total:.6g} is possible (keep {least:g}): the N of N:M patterns and a floor of "
        f"{max(p.floor for p in parts)} unit(s) a layer always stay"
    )


def _by_glob(parts: Sequence[_Part], target: Target | None, scope: Mapping[str, float]) -> tuple[Budget, ...]:
    for glob, sparsity in scope.items():
        Target(sparsity=sparsity)
        if not any(fnmatchcase(p.layer.name, glob) for p in parts):
            possible = ", ".join(p.layer.name for p in parts)
            raise ValueError(f"scope glob {glob!r} matches no layer; possible: {possible}")
    if target is not None and target.has_budget and target.sparsity is None:
        raise ValueError(f"a scope of globs takes a target sparsity for the other layers, not {target}")
    budgets = []
    for part in parts:
        rest = target.sparsity if target is not None else None
        wanted = next((s for glob, s in scope.items() if fnmatchcase(part.layer.name, glob)), rest)
        if wanted is not None:
            budgets.append(_join([part], part.total * (1.0 - wanted), wanted))
    return tuple(budgets)


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


def _erk(parts: Sequence[_Part], target: Target) -> tuple[Budget, ...]:
    """Budgets per layer whose sum meets the target: whole units, the remainder to the layers cut shortest."""
    whole = _join(parts, target.kept(sum(p.total for p in parts)), 0.0)
    shapes = [p.layer.shape for p in parts]
    densities = erk_densities(shapes, [p.total for p in parts], whole.kept / whole.total)
    wanted = [max(p.total * d, p.least) for p, d in zip(parts, densities)]
    budgets = [_whole_units(p, w) for p, w in zip(parts, wanted)]
    kept = [b.kept for b in budgets]
    # Floors may have raised some layers: the densest give way.
    kept = _lowered(parts, kept, sum(kept) - whole.kept)
    kept = _raised(parts, kept, wanted, whole.kept - sum(kept))
    return tuple(replace(b, kept=k, requested=1.0 - k / b.total) for b, k in zip(budgets, kept))


def _whole_units(part: _Part, kept: float) -> Budget:
    unit = _common_cost([part])
    if unit is not None:
        kept = part.fixed + unit * math.floor((kept - part.fixed) / unit + 1e-9)
    return _join([part], max(kept, part.least), 0.0)


def _lowered(parts: Sequence[_Part], kept: list[float], excess: float) -> list[float]:
    kept = list(kept)
    while excess > 1e-9:
        index = max(range(len(parts)), key=lambda i: (kept[i] - parts[i].least) / parts[i].total)
        step = _common_cost([parts[index]]) or excess
        kept[index] = max(kept[index] - step, parts[index].least)
        excess -= step
    return kept


def _raised(parts: Sequence[_Part], kept: list[float], wanted: list[float], room: float) -> list[float]:
    kept = list(kept)
    while True:
        fits = [
            i
            for i, p in enumerate(parts)
            if (_common_cost([p]) or math.inf) <= room + 1e-9 and kept[i] < p.total - 1e-9
        ]
        if not fits:
            return kept
        index = max(fits, key=lambda i: (wanted[i] - kept[i]) / (_common_cost([parts[i]]) or 1.0))
        step = _common_cost([parts[index]]) or 0.0
        kept[index] += step
        room -= step
