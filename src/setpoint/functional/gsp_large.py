"""The grouped sparse projection of many entries: the same equation as `Vectors`, in compiled passes over memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from setpoint.functional.compiled import new_like
from setpoint.functional.compiled.threads import Array, on_threads
from setpoint.functional.gsp_pieces import LONG, Piece, Rows, divided, sampled
from setpoint.functional.root import Root, monotone_root

# Of the average sparsity: single precision is not told apart below this, as its own rounding is larger.
_TOLERANCE = {torch.float32: 1e-9, torch.float64: 1e-10}

_Sums = dict[tuple[int, int], Array]


class LargeVectors:
    """A set of vectors on the CPU that the kernels can read.

    Args:
        matrices: by a number of the caller's: contiguous, float32 or float64, with a vector in each row, of two entries
            or more.
        scale_invariant: as in `project_gsp`.

    Attributes:
        readable: whether the kernels' sums hold: all entries are finite, and none so small or large in float64 that
            squares vanish or overflow.
        multiplier: the mu that `solve` found; None as long as there is none, and where the vectors stay as they are.
    """

    def __init__(self, matrices: Mapping[int, Tensor], scale_invariant: bool) -> None:
        from setpoint.functional.compiled import shrink

        self._kernels: Any = shrink
        self._tolerance = max(_TOLERANCE[matrix.dtype] for matrix in matrices.values())
        arrays = {number: matrix.detach().numpy() for number, matrix in matrices.items()}
        self._rows = {
            number: Rows(array, np.empty(len(array)), 1.0 / (math.sqrt(array.shape[1]) - 1.0), array.shape[1] >= LONG)
            for number, array in arrays.items()
        }
        self._count = sum(len(array) for array in arrays.values())
        self._pieces = divided(self._rows.values())
        self._last: tuple[float, _Sums] = (-1.0, {})
        self.multiplier: float | None = None
        sums = self._norms()
        self.readable = all(
            bool((np.isfinite(square) & ((square > 1e-290) | (total == 0))).all()) for total, square in sums.values()
        )
        if self.readable:
            self._set_up(sums, scale_invariant)

    def _set_up(self, sums: Mapping[int, tuple[Array, Array]], scale_invariant: bool) -> None:
        """Thresholds; the excess at mu = 0; a mu beyond which nothing is left, and a first guess."""
        self._at_zero = self._beyond = self._guess = 0.0
        for number, (total, square) in sums.items():
            rows, norm = self._rows[number], np.sqrt(square)
            safe = np.where(norm == 0, 1.0, norm)
            rows.per_mu[:] = rows.beta * safe if scale_invariant else rows.beta
            self._at_zero += rows.beta * float(np.where(norm == 0, 0.0, np.maximum(total / safe - 1.0, 0.0)).sum())
            # No entry is larger than the norm.
            self._beyond = max(self._beyond, float((norm / rows.per_mu).max()) * (1.0 + 1e-9))
            self._guess = max(self._guess, 0.5 * float((total / rows.entries.shape[1] / rows.per_mu).mean()))

    def solve(self, sparsity: float, start: float | None = None) -> bool:
        """Find the multiplier; whether there is an answer: tied entries may leave none, and are for the eager path.

        Args:
            sparsity: average to reach.
            start: a mu from nearby to begin from; by default one of a sample.
        """
        level, tolerance = self._count * (1.0 - sparsity), self._count * self._tolerance
        if self._at_zero <= level + tolerance:
            return True
        if start is None or not 0.0 < start < self._beyond:
            sample = divided([sampled(rows) for rows in self._rows.values()])
            start = self._root(sample, level, self._guess, 1e-4 * self._count).x
        root = self._root(self._pieces, level, start, tolerance)
        self.multiplier = root.x if root.converged else None
        return root.converged

    def write(self, *, relative: bool, into: Sequence[Tensor | None] | None = None) -> dict[int, Tensor]:
        """The projection, or what part of each magnitude it is, by number; nothing where the vectors stay as they are.

        Args:
            relative: ask for parts of the magnitudes.
            into: by number, a contiguous tensor to write to, which may be the one that is projected; or None.
        """
        if self.multiplier is None:
            return {}
        mu, scales = self.multiplier, self._scales(self.multiplier)
        out = {}
        for number, rows in self._rows.items():
            given = None if into is None else into[number]
            out[number] = new_like(torch.from_numpy(rows.entries)) if given is None else given.detach()
        arrays = {id(rows): out[number].numpy() for number, rows in self._rows.items()}

        def work(piece: Piece) -> None:
            rows, lines = piece.rows, slice(piece.first, piece.last)
            array = arrays[id(rows)][lines]
            if not rows.long:
                self._kernels.shrink_rows(piece.entries, rows.per_mu[lines], mu, array, relative)
                return
            write = self._kernels.fractions if relative else self._kernels.shrink
            part = array[0, piece.begin : piece.begin + piece.entries.size]
            write(piece.entries, float(rows.per_mu[piece.first]) * mu, scales[id(rows), piece.first], part)

        # Long vectors of which nothing is left keep one entry, which is read before it may be overwritten.
        lone = [self._lone(number, r) for number, rows in self._rows.items() for r in _empty(rows, scales)]
        on_threads(work, self._pieces)
        for number, r, place, entry in lone:
            out[number][r, place] = 1.0 if relative else entry
        for tensor in out.values():
            torch.autograd.graph.increment_version(tensor)
        return out

    def _lone(self, number: int, r: int) -> tuple[int, int, int, float]:
        """The first largest entry of a row."""
        row = self._rows[number].entries[r]
        place = int(self._kernels.first_largest(row))
        return number, r, place, float(row[place])

    def _norms(self) -> dict[int, tuple[Array, Array]]:
        """Of each vector the sums of magnitudes and of squares."""
        sums = {id(rows): (np.zeros(len(rows.entries)), np.zeros(len(rows.entries))) for rows in self._rows.values()}

        def work(piece: Piece) -> tuple[float, float] | None:
            if piece.rows.long:
                found: tuple[float, float] = self._kernels.norms(piece.entries)
                return found
            total, square = (s[piece.first : piece.last] for s in sums[id(piece.rows)])
            self._kernels.norms_of_rows(piece.entries, total, square)
            return None

        for piece, found in zip(self._pieces, on_threads(work, self._pieces)):
            if found is not None:
                total, square = sums[id(piece.rows)]
                total[piece.first] += found[0]
                square[piece.first] += found[1]
        return {number: sums[id(rows)] for number, rows in self._rows.items()}

    def _sums(self, pieces: Sequence[Piece], mu: float) -> tuple[float, float, _Sums]:
        """Excess and slope of all short rows; number, sum and squares of what is left of each long one."""

        def work(piece: Piece) -> tuple[float, ...]:
            per_mu = piece.rows.per_mu[piece.first : piece.last]
            if piece.rows.long:
                found: tuple[float, ...] = self._kernels.left(piece.entries, float(per_mu[0]) * mu)
                return found
            sums: tuple[float, ...] = self._kernels.excess_of_rows(piece.entries, per_mu, mu, piece.rows.beta)
            return sums

        value = slope = 0.0
        long: _Sums = {}
        for piece, sums in zip(pieces, on_threads(work, pieces)):
            if piece.rows.long:
                key = (id(piece.rows), piece.first)
                long[key] = long.get(key, np.zeros(3)) + sums
            else:
                value += piece.rows.row_share * sums[0]
                slope += piece.rows.row_share * sums[1]
        return value, slope, long

    def _excess(self, pieces: Sequence[Piece], mu: float) -> tuple[float, float]:
        value, slope, long = self._sums(pieces, mu)
        self._last = mu, long
        for rows in {id(piece.rows): piece.rows for piece in pieces}.values():
            for r in range(len(rows.entries)) if rows.long else ():
                count, total, square = (rows.entry_share * float(s) for s in long[id(rows), r])
                more, steeper = self._kernels.excess(count, total, square, float(rows.per_mu[r]), rows.beta)
                value += rows.row_share * more
                slope += rows.row_share * steeper
        return value, slope

    def _scales(self, mu: float) -> dict[tuple[int, int], float]:
        """What is left of each long row is multiplied by this; 0 where nothing is left."""
        long = [piece for piece in self._pieces if piece.rows.long]
        tau = {(id(piece.rows), piece.first): float(piece.rows.per_mu[piece.first]) * mu for piece in long}
        # The search ends with the sums at its root.
        sums = self._last[1] if self._last[0] == mu else self._sums(long, mu)[2]
        return {key: 1.0 + tau[key] * s[1] / s[2] if s[2] > 0.0 else 0.0 for key, s in sums.items()}

    def _root(self, pieces: Sequence[Piece], level: float, start: float, tolerance: float) -> Root:
        return monotone_root(
            lambda mu: self._excess(pieces, mu), 0.0, self._beyond, level=level, tolerance=tolerance, start=start
        )


def _empty(rows: Rows, scales: Mapping[tuple[int, int], float]) -> list[int]:
    """Long vectors of which nothing is left."""
    return [r for r in range(len(rows.entries)) if rows.long and scales[id(rows), r] == 0.0]
