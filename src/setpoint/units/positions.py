"""Units along one axis of a parameter, each at positions of its own: one part of a unit that crosses layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from setpoint.units.partition import Partition


@dataclass(frozen=True, eq=False)
class Positions(Partition):
    """Unit j is all that lies at the positions `index[j]` along an axis.

    Attributes:
        axis: of the parameter's own shape.
        index: positions of each unit, shape (units, positions of a unit), on the CPU; no position twice. Entries at
            positions that are not named belong to no unit.
    """

    axis: int
    index: Tensor
    axes: ClassVar[tuple[str, ...]] = ("unit",)

    @property
    def counts(self) -> tuple[int, ...]:
        return (len(self.index),)

    def magnitudes(self, tensor: Tensor) -> Tensor:
        return self.sums(tensor.float() if tensor.dtype.itemsize < 4 else tensor, tensor, power=2).sqrt()

    def sums(self, values: Tensor, tensor: Tensor, power: int = 1) -> Tensor:
        """The sum over each unit of the values, or of a power of them."""
        work = values if values.dtype in (torch.float32, torch.float64) else values.float()
        others = [i for i in range(work.ndim) if i != self.axis]
        work = work if power == 1 else work.pow(power)
        along = work.sum(others) if others else work
        return along[self.index.to(along.device)].sum(1)

    def expand(self, factors: Tensor, tensor: Tensor) -> Tensor:
        along = torch.ones(self.layout.shape[self.axis], dtype=factors.dtype, device=factors.device)
        along[self.index.flatten().to(factors.device)] = factors.repeat_interleave(self.index.shape[1])
        shape = [1] * len(self.layout.shape)
        shape[self.axis] = -1
        return along.reshape(shape).expand(self.layout.shape)

    def sizes(self) -> Tensor:
        entries = self.layout.shape
        across = 1
        for i, n in enumerate(entries):
            across *= 1 if i == self.axis else n
        return torch.tensor(float(self.index.shape[1] * across), dtype=torch.float64)
