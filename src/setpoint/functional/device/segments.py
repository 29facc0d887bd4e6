"""Rows of any lengths, one after another in one tensor, and sums over each of them in a few operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Long rows are summed in pieces of so many entries first: a GPU gives each segment to one block of threads.
_PIECE = 4096


class Segments:
    """The rows of some matrices, one after another.

    Sums do not depend on how the device's threads happen to run, so that they are the same on all ranks.

    Args:
        shapes: of the matrices, in their order.
        device: where the entries are.

    Attributes:
        entries: how many there are.
        rows: how many rows.
        lengths: of the rows, int64.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], device: torch.device) -> None:
        counts = torch.tensor([count for count, _ in shapes])
        lengths = torch.tensor([length for _, length in shapes]).repeat_interleave(counts)
        pieces = (lengths + _PIECE - 1) // _PIECE
        ends = torch.full((int(pieces.sum()),), _PIECE)
        ends[pieces.cumsum(0) - 1] = lengths - (pieces - 1) * _PIECE
        self.entries, self.rows = int(lengths.sum()), len(lengths)
        self.lengths, self._pieces, self._rows = (
            t.to(device, non_blocking=True) for t in (lengths, _offsets(ends), _offsets(pieces))
        )

    def sums(self, entries: Tensor) -> Tensor:
        """Of each row."""
        return self._reduced(entries, "sum")

    def largest(self, entries: Tensor) -> Tensor:
        """Of each row; NaN where it has one."""
        return self._reduced(entries, "max")

    def smallest(self, entries: Tensor) -> Tensor:
        """Of each row; NaN where it has one."""
        return self._reduced(entries, "min")

    def spread(self, rows: Tensor) -> Tensor:
        """A number of each row, given to all its entries."""
        return rows.repeat_interleave(self.lengths, output_size=self.entries)

    def _reduced(self, entries: Tensor, how: str) -> Tensor:
        pieces = torch.segment_reduce(entries, how, offsets=self._pieces, unsafe=True)
        return torch.segment_reduce(pieces, how, offsets=self._rows, unsafe=True)


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
