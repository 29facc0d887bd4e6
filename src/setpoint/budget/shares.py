"""What one layer has at stake in a budget, and budgets that some layers share, rounded to what is achievable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from setpoint.budget.budget import Budget
from setpoint.budget.rounding import achievable
from setpoint.budget.target import Cost
from setpoint.units import Layer


def unit_costs(layer: Layer, cost: Cost) -> Tensor:
    """What each unit costs. Units of patterns that keep a part of themselves count their entries in any case."""
    if cost == "units" and not layer.rest:
        return torch.tensor(1.0, dtype=torch.float64)
    return layer.sizes()


@dataclass(frozen=True)
class Share:
    """One layer's share of the accounts.

    Attributes:
        index: the layer's position.
        layer: whose units they are.
        costs: of the units, broadcastable to the layer's counts.
        floor: how many of them always stay.
        total: cost of everything, `fixed` included.
        fixed: cost of what belongs to no unit.
    """

    index: int
    layer: Layer
    costs: Tensor
    floor: int
    total: float
    fixed: float

    @classmethod
    def of(cls, index: int, layer: Layer, cost: Cost, floor: int, rate: float = 1.0) -> Share:
        """The share of a layer whose entries cost `rate` each."""
        costs, count, rest = unit_costs(layer, cost) * rate, math.prod(layer.counts), layer.rest * rate
        movable = float(costs) * count if costs.ndim == 0 else float(costs.expand(layer.counts).sum())
        return cls(index, layer, costs, 0 if rest else min(floor, count), movable + rest, float(rest))

    @property
    def dearest(self) -> float:
        """Cost of the dearest unit."""
        return float(self.costs.max())

    @property
    def least(self) -> float:
        """Cost that stays in any case."""
        return self.fixed + self.floor * self.dearest


def join(shares: Sequence[Share], kept: float, requested: float, *, within: bool) -> Budget:
    """One budget for some layers: of whole units where all cost the same, and otherwise as it was asked for.

    Args:
        shares: of the layers.
        kept: cost that was asked to stay.
        requested: the fraction of the cost that was asked to go.
        within: whether `kept` must not be exceeded (`Target.never_exceeded`).

    Raises:
        ValueError: if more always stays, naming how much.
    """
    total, fixed = sum(s.total for s in shares), sum(s.fixed for s in shares)
    least = sum(s.least for s in shares)
    unit = common_cost([s.costs for s in shares])
    if unit is not None:
        floor = sum(s.floor for s in shares)
        found = achievable(kept, total=total, fixed=fixed, unit=unit, floor=floor, within=within)
    else:
        found = kept if least <= kept * (1 + 1e-12) else None
    if found is None:
        raise _impossible(shares, kept, total, least)
    layers, costs = tuple(s.index for s in shares), tuple(s.costs for s in shares)
    return Budget(layers, costs, tuple(s.floor for s in shares), total, fixed, min(found, total), requested)


def common_cost(costs: Sequence[Tensor]) -> float | None:
    """What every unit costs, where all cost the same."""
    found = {value for cost in costs for value in torch.unique(cost).tolist()}
    return found.pop() if len(found) == 1 and 0.0 not in found else None


def _impossible(shares: Sequence[Share], kept: float, total: float, least: float) -> ValueError:
    where = f"layer {shares[0].layer.name!r}" if len(shares) == 1 else f"{len(shares)} layers together"
    return ValueError(
        f"{where}: a sparsity of {1 - kept / total:.6g} was asked for (keep {kept:,.10g} of {total:,.10g}), but at "
        f"most {1 - least / total:.6g} is possible (keep {least:,.10g}): the N of N:M patterns and a floor of "
        f"{max(s.floor for s in shares)} unit(s) a layer always stay"
    )
