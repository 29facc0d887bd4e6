"""The kinds of units that lie in one parameter, and their names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from setpoint.units.layout import Layout
from setpoint.units.partition import Partition

Unit = str | tuple[int, int]


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
        return _norm(canonical, self._dims) if self._dims else _exact(canonical).abs()

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
    """Tiles of `height` outputs by `width` inputs in the matrix (outputs, inputs * taps).

    Where the matrix is no multiple of the tile, the last tiles are smaller and cost less.
    """

    height: int = 1
    width: int = 1
    axes: ClassVar[tuple[str, ...]] = ("output", "input")

    @property
    def _matrix(self) -> tuple[int, int]:
        groups, outputs, inputs, taps = self.layout.canonical
        return groups * outputs, inputs * taps

    @cached_property
    def counts(self) -> tuple[int, ...]:
        rows, columns = self._matrix
        return -(-rows // self.height), -(-columns // self.width)

    def _tiles(self, tensor: Tensor) -> Tensor:
        """(down, height, across, width), padded with zeros."""
        matrix = self.layout.to_canonical(tensor).reshape(self._matrix)
        down, across = self.counts
        padded = F.pad(matrix, (0, across * self.width - matrix.shape[1], 0, down * self.height - matrix.shape[0]))
        return padded.reshape(down, self.height, across, self.width)

    def magnitudes(self, tensor: Tensor) -> Tensor:
        return _norm(self._tiles(tensor), (1, 3)).reshape(self.counts)

    def sums(self, values: Tensor, tensor: Tensor) -> Tensor:
        return _exact(self._tiles(values)).sum((1, 3))

    def expand(self, factors: Tensor, tensor: Tensor) -> Tensor:
        rows, columns = self._matrix
        tiled = factors.reshape(self.counts).repeat_interleave(self.height, 0).repeat_interleave(self.width, 1)
        return self.layout.from_canonical(tiled[:rows, :columns].reshape(self.layout.canonical))

    def sizes(self) -> Tensor:
        rows, columns = self._matrix
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
        The partition, or None where the parameter has no such units (filters of a Linear weight, rows of a vector,
        2:4 over fewer than three inputs).

    Raises:
        ValueError: for a unit that is none of these.
    """
    if isinstance(unit, tuple):
        return _blocks(unit, layout)
    if found := re.fullmatch(r"(\d+)x(\d+)", unit):
        return _blocks((int(found[1]), int(found[2])), layout)
    if found := re.fullmatch(r"(\d+):(\d+)", unit):
        return _pattern(int(found[1]), int(found[2]), layout)
    if unit not in _SLICES:
        raise ValueError(f"unit={unit!r} is none of {', '.join(_SLICES)}, (height, width), 'N:M'")
    if unit in ("filter", "kernel") and not layout.convolution:
        return None
    if unit != "weight" and len(layout.shape) < 2:
        return None
    return Slices(layout, _SLICES[unit])


_SLICES: dict[str, tuple[str, ...]] = {
    "weight": (),
    "row": ("input", "tap"),
    "column": ("output", "tap"),
    "kernel": ("tap",),
    "filter": ("input", "tap"),
}


def _blocks(unit: tuple[int, int], layout: Layout) -> Partition | None:
    height, width = unit
    if height < 1 or width < 1:
        raise ValueError(f"unit={unit} is no block: height and width must be at least 1")
    return Blocks(layout, height, width) if len(layout.shape) >= 2 else None


def _pattern(n: int, m: int, layout: Layout) -> Partition | None:
    if not 0 < n < m:
        raise ValueError(f"unit='{n}:{m}' is no pattern: it takes 0 < N < M")
    if len(layout.shape) < 2 or layout.canonical[2] <= n:
        return None
    return NM(layout, n, m)


def unit_name(unit: Unit) -> str:
    """The unit as it is written on the command line and in reports."""
    return unit if isinstance(unit, str) else f"{unit[0]}x{unit[1]}"
