"""A budget: how much the units of some layers may cost together, and which of them stay within it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from setpoint.budget.whole import WholeCost
from setpoint.functional.budget import count_within, project_budget, project_values
from setpoint.functional.budget_widths import project_widths
from setpoint.functional.entries import count_nonzero
from setpoint.functional.values import Values
from setpoint.reading import read
from setpoint.units import Layer


@dataclass(frozen=True)
class Budget:
    """How much the units of some layers may cost together.

    Attributes:
        layers: positions of the layers that share it.
        costs: of each layer's units, float64, broadcastable to the partition's counts.
        floors: how many units each layer keeps in any case.
        total: cost of everything.
        fixed: cost of what belongs to no unit (the N of an N:M pattern).
        kept: cost that may stay in the end, the fixed part included; of whole units where all cost the same.
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

    @property
    def attainable(self) -> float:
        """The fraction of the cost that goes when the budget is met, after rounding to whole units."""
        return 1.0 - self.kept / self.total

    def cut(self, scores: Sequence[Tensor | Values], ramp: float) -> list[Tensor]:
        """Which units stay once the budget has gone `ramp` of its way: boolean tensors shaped as the scores."""
        room = self.room(ramp)
        values = [score for score in scores if isinstance(score, Values)]
        if self.whole is None and len(values) == len(scores):
            return project_values(values, room, self.costs, floors=self.floors)
        tensors = [score.tensor() if isinstance(score, Values) else score for score in scores]
        if self.whole is not None:
            return project_widths(tensors, room, self.whole, floors=self.floors, multiple=self.multiple)
        return project_budget(tensors, room, self.costs, floors=self.floors)

    def places(self, ramp: float) -> int:
        """How many units the budget has room for, where all cost the same, once it has gone `ramp` of its way."""
        return count_within(self.room(ramp), float(self.costs[0]))

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
        return self.fixed + sum(_cost(c, k.cpu()) for c, k in zip(self.costs, kept))

    def next_cost(self, kept: Sequence[Tensor]) -> float | None:
        """What the cheapest unit that went would cost, or the cheapest step of width; None if all stay."""
        if self.whole is None:
            gone = [_costs_of(c, ~k.cpu()) for c, k in zip(self.costs, kept)]
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


def _cost(costs: Tensor, units: Tensor) -> float:
    """Of some units of a layer, together."""
    if costs.numel() == 1:
        return float(costs) * int(count_nonzero(units))
    return float(costs.expand(units.shape)[units].sum())


def _costs_of(costs: Tensor, units: Tensor) -> Tensor:
    """Those of some units of a layer; one for all of them where they are the same."""
    if costs.numel() == 1:
        return costs.flatten()[: int(bool(units.any()))]
    return costs.expand(units.shape)[units]


def _widths(kept: Sequence[Tensor]) -> list[int]:
    return [int(width) for width in read([count_nonzero(k) for k in kept])]


def in_budgets(layers: Sequence[Layer], budgets: Sequence[Budget]) -> tuple[tuple[Layer, ...], tuple[Budget, ...]]:
    """The layers that hold or share a budget, and the budgets with their positions among these."""
    used = sorted({i for b in budgets for i in b.layers})
    place = {old: new for new, old in enumerate(used)}
    moved = tuple(replace(b, layers=tuple(place[i] for i in b.layers)) for b in budgets)
    return tuple(layers[i] for i in used), moved
