"""The kinds of units that lie in one parameter, and their names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from setpoint.functional.compiled import WORTH
from setpoint.functional.entries import squares_across, writable
from setpoint.units.layout import Layout
from setpoint.units.partition import Partition
from setpoint.units.unit import COUPLED, SLICES, Unit, check_unit, sizes_of


def _exact(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _norm(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(_exact(tensor), dim=dims, keepdim=True)
    return norm


@dataclass(frozen=True)
class Slices(Partition):
    """Units that are slices of the canonical form: weights, rows, columns, kernels.

    `reduced` names the axes inside a unit.
    """

    reduced: tuple[str, ...] = ()
    axes: ClassVar[tuple[str, ...]] = ("group", "output", "input", "tap")

    @property
    def whole_outputs(self) -> bool:
        return set(self.reduced) == {"input", "tap"}

    @cached_property
    def _dims(self) -> tuple[int, ...]:
        return tuple(self.axes.index(a) for a in self.reduced)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        return tuple(1 if i in self._dims else n for i, n in enumerate(self.layout.canonical))

    def magnitudes(self, tensor: Tensor) -> Tensor:
        canonical = self.layout.to_canonical(tensor)
        if not self._dims:
            return _exact(canonical).abs()
        if self._across and writable(tensor) and tensor.numel() >= WORTH:
            groups, kept, taps = canonical.shape[0], self.layout.canonical[1 if self.layout.transposed else 2], -1
            squares = squares_across(tensor.reshape(groups, -1, kept * canonical.shape[3]))
            return squares.reshape(groups, kept, taps).sum(2).sqrt().to(tensor.dtype).reshape(self.counts)
        return _norm(canonical, self._dims)

    @property
    def _across(self) -> bool:
        """Whether a unit's entries are far apart in memory: along the first axis that a matrix is stored by."""
        return set(self.reduced) == {"input" if self.layout.transposed else "output", "tap"}

    def multiply(self, tensor: Tensor, factors: Tensor) -> None:
        canonical = self.layout.to_canonical(tensor)
        if canonical.data_ptr() != tensor.data_ptr() or tensor.numel() == 0:
            super().multiply(tensor, factors)
        else:
            canonical.mul_(factors.reshape(self.counts).to(tensor.dtype))

    def entries(self, tensor: Tensor) -> Tensor | None:
        if self._dims or not tensor.is_contiguous() or type(tensor) not in (Tensor, nn.Parameter):
            return None
        canonical = self.layout.to_canonical(tensor)
        return canonical if canonical.is_contiguous() and canonical.data_ptr() == tensor.data_ptr() else None

    def sums(self, values: Tensor, tensor: Tensor) -> Tensor:
        canonical = _exact(self.layout.to_canonical(values))
        return canonical.sum(self._dims, keepdim=True) if self._dims else canonical

    def expand(self, factors: Tensor, tensor: Tensor) -> Tensor:
        return self.layout.from_canonical(factors.reshape(self.counts).expand(self.layout.canonical))

    def sizes(self) -> Tensor:
        inside = 1
        for d in self._dims:
            inside *= self.layout.canonical[d]
        return torch.tensor(float(inside), dtype=torch.float64)


@dataclass(frozen=True)
class Blocks(Partition):
    """Tiles of `height` outputs by `width` inputs in the matrix (outputs, inputs * taps) of each group.

    Where the matrix is no multiple of the tile, the last tiles are smaller and cost less.
    """

    height: int = 1
    width: int = 1
    axes: ClassVar[tuple[str, ...]] = ("group", "output", "input")

    @property
    def _matrices(self) -> tuple[int, int, int]:
        groups, outputs, inputs, taps = self.layout.canonical
        return groups, outputs, inputs * taps

    @cached_property
    def counts(self) -> tuple[int, ...]:
        groups, rows, columns = self._matrices
        return groups, -(-rows // self.height), -(-columns // self.width)

    def _tiles(self, tensor: Tensor) -> Tensor:
        """(groups, down, height, across, width), padded with zeros."""
        matrices = self.layout.to_canonical(tensor).reshape(self._matrices)
        (_, rows, columns), (groups, down, across) = self._matrices, self.counts
        padded = F.pad(matrices, (0, across * self.width - columns, 0, down * self.height - rows))
        return padded.reshape(groups, down, self.height, across, self.width)

    def magnitudes(self, tensor: Tensor) -> Tensor:
        return _norm(self._tiles(tensor), (2, 4)).reshape(self.counts)

    def sums(self, values: Tensor, tensor: Tensor) -> Tensor:
        return _exact(self._tiles(values)).sum((2, 4))

    def expand(self, factors: Tensor, tensor: Tensor) -> Tensor:
        _, rows, columns = self._matrices
        tiled = factors.reshape(self.counts).repeat_interleave(self.height, 1).repeat_interleave(self.width, 2)
        return self.layout.from_canonical(tiled[:, :rows, :columns].reshape(self.layout.canonical))

    def sizes(self) -> Tensor:
        _, rows, columns = self._matrices
        if rows % self.height == 0 and columns % self.width == 0:
            return torch.tensor(float(self.height * self.width), dtype=torch.float64)
        return torch.outer(_edges(rows, self.height), _edges(columns, self.width))


def _edges(length: int, step: int) -> Tensor:
    """Sizes of consecutive pieces of `step` that cover `length`."""
    sizes = torch.full((-(-length // step),), float(step), dtype=torch.float64)
    sizes[-1] = length - step * (len(sizes) - 1)
    return sizes


@dataclass(frozen=True)
class NM(Partition):
    """N:M patterns along the input axis: a unit is the M - N smallest of M consecutive inputs of one output and tap.

    Once every unit of a parameter is gone, each group of M holds at most N weights. Which entries are the smallest
    is read off the weights. A last group of fewer than M inputs is treated as if padded with zeros.
    """

    n: int = 2
    m: int = 4
    axes: ClassVar[tuple[str, ...]] = ("group", "output", "tap", "input")

    @cached_property
    def counts(self) -> tuple[int, ...]:
        groups, outputs, inputs, taps = self.layout.canonical
        return groups, outputs, taps, -(-inputs // self.m)

    def _grouped(self, tensor: Tensor) -> Tensor:
        """(groups, outputs, taps, input groups, M), padded with zeros."""
        canonical = self.layout.to_canonical(tensor).transpose(2, 3)
        padded = F.pad(canonical, (0, self.counts[-1] * self.m - canonical.shape[-1]))
        return padded.reshape(*self.counts, self.m)

    def _smallest(self, tensor: Tensor) -> Tensor:
        """Which entries of each group belong to its unit; on ties the first ones stay."""
        grouped = self._grouped(tensor).abs()
        # Padding must be the first to go, before weights that are zero.
        real = self._grouped(torch.ones_like(tensor))
        order = torch.where(real > 0, grouped, -1.0).argsort(dim=-1, descending=True, stable=True)
        ranks = torch.empty_like(order).scatter_(
            -1, order, torch.arange(self.m, device=order.device).expand_as(order).contiguous()
        )
        return ranks >= self.n

    def magnitudes(self, tensor: Tensor) -> Tensor:
        return _norm(self._grouped(tensor) * self._smallest(tensor), (-1,)).squeeze(-1)

    def sums(self, values: Tensor, tensor: Tensor) -> Tensor:
        return (_exact(self._grouped(values)) * self._smallest(tensor)).sum(-1)

    def expand(self, factors: Tensor, tensor: Tensor) -> Tensor:
        inside = self._smallest(tensor)
        spread = factors.reshape(self.counts).unsqueeze(-1).expand(*self.counts, self.m)
        entries = torch.where(inside, spread, torch.ones_like(spread))
        groups, outputs, inputs, taps = self.layout.canonical
        flat = entries.reshape(groups, outputs, taps, -1)[..., :inputs]
        return self.layout.from_canonical(flat.transpose(2, 3))

    def sizes(self) -> Tensor:
        inputs = self.layout.canonical[2]
        if inputs % self.m == 0:
            return torch.tensor(float(self.m - self.n), dtype=torch.float64)
        return (_edges(inputs, self.m) - self.n).clamp_min(0.0)

    @property
    def rest(self) -> int:
        groups, outputs, inputs, taps = self.layout.canonical
        whole, left = divmod(inputs, self.m)
        return groups * outputs * taps * (whole * self.n + min(left, self.n))


def partition(unit: Unit, layout: Layout) -> Partition | None:
    """Divide a parameter into units.

    Args:
        unit: `"weight"`; `"row"` (one output: a neuron's or a filter's weights); `"column"` (all weights that read
            one input); `"filter"` and `"kernel"` (a convolution's row, and its slice for one input and output);
            `(bh, bw)` or `"4x4"` (tiles; smaller at the edge of a matrix that they do not divide); `"2:4"`
            (along the input axis; a last group that is too short is padded).
        layout: of the parameter.

    Returns:
        The partition, or None where the parameter has no such units (filters of a Linear weight, rows of a vector or
        of a matrix whose outputs are not known, 2:4 over fewer than three inputs).

    Raises:
        TypeError: for what is no unit's name.
        ValueError: for a unit that is none of these.
    """
    check_unit(unit)
    if unit == "weight":
        return Slices(layout)
    if len(layout.shape) < 2 or not layout.known:
        return None
    if (sizes := sizes_of(unit)) is not None:
        kind, first, second = sizes
        if kind == "block":
            return Blocks(layout, first, second)
        return NM(layout, first, second) if layout.canonical[2] > first else None
    if not isinstance(unit, str) or unit in COUPLED:
        raise ValueError(f"unit={unit!r} crosses layers: it is no part of one parameter")
    return Slices(layout, SLICES[unit]) if layout.convolution or unit not in ("filter", "kernel") else None
