"""All of a parameter as a part of one unit among several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from setpoint.units.partition import Partition


@dataclass(frozen=True, eq=False)
class Member(Partition):
    """A parameter whose entries all belong to unit `index` of `units`; it has none of the others'."""

    index: int
    units: int
    axes: ClassVar[tuple[str, ...]] = ("unit",)

    @property
    def counts(self) -> tuple[int, ...]:
        return (self.units,)

    def magnitudes(self, tensor: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(_exact(tensor))
        return self._alone(norm)

    def sums(self, values: Tensor, tensor: Tensor) -> Tensor:
        return self._alone(_exact(values).sum())

    def expand(self, factors: Tensor, tensor: Tensor) -> Tensor:
        return factors[self.index].expand(self.layout.shape)

    def sizes(self) -> Tensor:
        return self._alone(torch.tensor(float(torch.Size(self.layout.shape).numel()), dtype=torch.float64))

    def _alone(self, value: Tensor) -> Tensor:
        every = value.new_zeros(self.units)
        every[self.index] = value
        return every


def _exact(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
