"""Units: how one parameter falls into the smallest parts that become zero together.

Every partition works on the canonical form `(groups, outputs, inputs, taps)` of `Layout`, so no unit knows how a
layer stores its weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from setpoint.units.layout import Layout

VectorKind = Literal["layer", "row", "column", "kernel"]

# Which axes of the units stay fixed along one vector of each kind.
_FIXED: dict[str, tuple[str, ...]] = {
    "layer": (),
    "row": ("group", "output"),
    "column": ("group", "input"),
    "kernel": ("group", "output", "input"),
}


@dataclass(frozen=True)
class Partition(ABC):
    """The units of one parameter.

    Magnitudes, costs and factors are tensors of shape `counts`, whose axes are named by `axes`.
    """

    layout: Layout
    axes: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def counts(self) -> tuple[int, ...]:
        """How many units there are along each axis."""

    @abstractmethod
    def magnitudes(self, tensor: Tensor) -> Tensor:
        """The l2 norm of each unit's entries, in float32 or better."""

    def entries(self, tensor: Tensor) -> Tensor | None:
        """The parameter itself in the shape `counts`, where its units are single entries that lie in that order."""
        return None

    @abstractmethod
    def sums(self, values: Tensor, tensor: Tensor) -> Tensor:
        """The sum of one value an entry over each unit, in float32 or better; the units are those of `tensor`."""

    @abstractmethod
    def expand(self, factors: Tensor, tensor: Tensor) -> Tensor:
        """Give each entry of the parameter its unit's factor: shape and memory order of the parameter."""

    def multiply(self, tensor: Tensor, factors: Tensor) -> None:
        """Multiply each entry of the parameter by its unit's factor, in place."""
        tensor.mul_(self.expand(factors, tensor).to(tensor.dtype))

    @abstractmethod
    def sizes(self) -> Tensor:
        """How many entries each unit has: a float64 tensor that broadcasts to `counts`."""

    @property
    def rest(self) -> int:
        """How many entries of the parameter belong to no unit and therefore always stay."""
        return 0

    @property
    def whole_outputs(self) -> bool:
        """Whether a unit is all that makes one output: a neuron's or a filter's weights."""
        return False

    def vectors(self, values: Tensor, kind: VectorKind) -> Tensor:
        """Arrange one value a unit as a matrix whose rows are vectors of the kind asked.

        Raises:
            ValueError: if these units have no such vectors.
        """
        order, rows = self._order(kind)
        return values.permute(order).reshape(rows, -1)

    def from_vectors(self, matrix: Tensor, kind: VectorKind) -> Tensor:
        """The inverse of `vectors`."""
        order, _ = self._order(kind)
        moved = matrix.reshape([self.counts[i] for i in order])
        return moved.permute([order.index(i) for i in range(len(order))])

    def _order(self, kind: VectorKind) -> tuple[list[int], int]:
        if kind not in _FIXED:
            raise ValueError(f"vectors={kind!r} is none of {', '.join(_FIXED)}")
        missing = [a for a in _FIXED[kind] if a != "group" and a not in self.axes]
        if missing:
            raise ValueError(f"vectors={kind!r} need units with an {missing[0]} axis; these have {self.axes}")
        if _FIXED[kind] and not self.layout.known:
            raise ValueError(f"vectors={kind!r} need to know which axes of {self.layout.shape} are outputs and inputs")
        fixed = [i for i, axis in enumerate(self.axes) if axis in _FIXED[kind]]
        order = fixed + [i for i in range(len(self.axes)) if i not in fixed]
        rows = 1
        for i in fixed:
            rows *= self.counts[i]
        return order, rows
