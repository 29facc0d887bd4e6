"""How the units of groups lie along an axis, and what a selection of units makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from setpoint.wiring.axes import Axis

Selections = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """An axis, apart from the graph it was derived from.

    Attributes:
        size: positions.
        group: the name of the group whose units the positions are; None if they are fixed or there are children.
        factors: children in row-major order.
        parts: children one after another.
    """

    size: int
    group: str | None = None
    factors: tuple[Layout, ...] = ()
    parts: tuple[Layout, ...] = ()

    @classmethod
    def of(cls, axis: Axis, names: Mapping[Axis, str]) -> Layout:
        """The structure of an axis, whose free atoms have these names."""
        factors = tuple(cls.of(f, names) for f in axis.factors)
        parts = () if factors else tuple(cls.of(p, names) for p in axis.parts)
        if not any(child.groups for child in (*factors, *parts)):
            factors = parts = ()
        return cls(axis.size, names.get(axis.root()), factors, parts)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups along this axis."""
        own = () if self.group is None else (self.group,)
        return tuple(dict.fromkeys((*own, *(g for c in (*self.factors, *self.parts) for g in c.groups))))

    def positions(self, selections: Selections) -> Tensor:
        """The positions of the axis that stand where units were selected, in their new order: (new size,) int64."""
        if self.factors:
            result = torch.zeros(1, dtype=torch.long)
            for factor in self.factors:
                result = (result[:, None] * factor.size + factor.positions(selections)).reshape(-1)
            return result
        if self.parts:
            ends = torch.tensor([p.size for p in self.parts]).cumsum(0).tolist()
            return torch.cat([p.positions(selections) + e - p.size for p, e in zip(self.parts, ends)])
        if self.group is not None and self.group in selections:
            return selections[self.group]
        return torch.arange(self.size)

    def units(self, group: str) -> Tensor:
        """To which unit of a group each position belongs, -1 for none: (size,) int64."""
        if self.group == group:
            return torch.arange(self.size)
        if self.parts:
            return torch.cat([p.units(group) for p in self.parts])
        result = torch.full((1,), -1)
        for factor in self.factors:
            own = factor.units(group)
            result = torch.maximum(result[:, None], own[None, :]).reshape(-1)
        return result if self.factors else torch.full((self.size,), -1)

    def index(self, group: str) -> Tensor:
        """The positions of each unit of a group: (units, positions of a unit) int64, ascending."""
        units = self.units(group)
        positions = (units >= 0).nonzero().squeeze(1)
        order = units[positions].argsort(stable=True)
        count = int(units.max()) + 1
        return positions[order].reshape(count, -1)

    def new_size(self, selections: Selections) -> int:
        """How many positions there are after a selection."""
        if self.factors:
            result = 1
            for factor in self.factors:
                result *= factor.new_size(selections)
            return result
        if self.parts:
            return sum(p.new_size(selections) for p in self.parts)
        if self.group is not None and self.group in selections:
            return len(selections[self.group])
        return self.size
