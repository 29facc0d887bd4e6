"""The grouped sparse projection on a GPU: the same equation as `Vectors`, over all vectors in a row.

An entry is kept as the mu at which it meets its threshold, `z = a / (threshold per mu)`. What is left of it at mu is in
proportion to `(z - mu)_+`, and the Hoyer measure of a vector does not depend on that proportion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from setpoint.functional.device import in_a_row, parted
from setpoint.functional.device.root import Search
from setpoint.functional.device.segments import Segments
from setpoint.functional.gsp_vectors import TIE

# Accepted error in the average sparsity.
_TOLERANCE = 1e-10
# Evaluations before the program looks at where the search is: from a multiplier of nearby vectors, and from none.
_WARM, _COLD = 5, 10
# Peaks between which squares of what is left of a double neither overflow nor vanish.
_SMALL, _LARGE = 1e-100, 1e100
# As `monotone_root`: halving a bracket of doubles takes 64, and steps of Newton's come in between.
_MOST = 200


class DeviceVectors:
    """Vectors on one device, each of two entries or more.

    Args:
        matrices: by a number of the caller's, with a vector in each row.
        scale_invariant: as in `project_gsp`.

    Attributes:
        multiplier: the mu that `solve` found; None as long as there is none, and where the vectors stay as they are.
    """

    def __init__(self, matrices: Mapping[int, Tensor], scale_invariant: bool) -> None:
        self._matrices = matrices
        entries = in_a_row(torch._foreach_abs([m.detach() for m in matrices.values()])).double()
        self._rows = rows = Segments([(m.shape[0], m.shape[1]) for m in matrices.values()], entries.device)
        peak = rows.largest(entries)
        self._readable = ((peak == 0) | ((peak > _SMALL) & (peak < _LARGE))).all()
        scale = peak.masked_fill(peak == 0, 1.0)
        entries /= rows.spread(scale)
        self._beta = 1.0 / (rows.lengths.double().sqrt() - 1.0)
        if scale_invariant:
            norm = rows.sums(entries.square()).sqrt()
            threshold = self._beta * norm.masked_fill(norm == 0, 1.0)
        else:
            threshold = self._beta / scale
        self._meets = entries.div_(rows.spread(threshold))
        self.multiplier: float | None = None

    def solve(self, sparsity: float, start: float | None = None) -> bool:
        """Find the multiplier; whether there is an answer: tied or unreadable entries are for the eager path.

        Args:
            sparsity: average to reach.
            start: a mu from nearby to begin from.
        """
        level, tolerance = self._rows.rows * (1.0 - sparsity), self._rows.rows * _TOLERANCE
        zero = torch.zeros((), dtype=torch.float64, device=self._meets.device)
        met = self._excess(zero)[0] <= level + tolerance
        # The largest of the rows' average thresholds: where Newton's steps are of use.
        guess = 0.5 * (self._rows.sums(self._meets) / self._rows.lengths).max()
        begin = guess if start is None else torch.full_like(zero, start)
        search = Search.of(zero, self._meets.max() * (1.0 + TIE), begin)
        evaluations = _COLD if start is None else _WARM
        for _ in range(_MOST // evaluations):
            search = search.advanced(self._excess, level, tolerance, evaluations)
            found = torch.stack([self._readable, met, search.converged, search.x, search.lower, search.upper])
            readable, done, converged, mu, lower, upper = found.tolist()
            if not readable:
                return False
            if done:
                return True
            if converged:
                self.multiplier = mu
                return True
            if not lower < mu < upper:
                return False
        return False

    def write(self, *, relative: bool, into: Sequence[Tensor | None] | None = None) -> dict[int, Tensor]:
        """The projection, or what part of each magnitude it is, by number; nothing where the vectors stay as they are.

        Args:
            relative: ask for parts of the magnitudes.
            into: by number, a tensor to write to, which may be the one that is projected; or None.
        """
        if self.multiplier is None:
            return {}
        factors = self._factors(self.multiplier)
        if relative:
            return factors
        out = {}
        for number, matrix in self._matrices.items():
            given = None if into is None else into[number]
            out[number] = (torch.empty_like(matrix) if given is None else given).copy_(matrix * factors[number])
        return out

    def _factors(self, mu: float) -> dict[int, Tensor]:
        rows, at = self._rows, self._meets
        left = (at - mu).clamp_min_(0.0)
        total, square = rows.sums(left), rows.sums(left.square())
        alone = square == 0
        gain = 1.0 + mu * total / square.masked_fill(alone, 1.0)
        out = left.div_(at.masked_fill(at == 0, 1.0)).mul_(rows.spread(gain))
        # Of vectors of which nothing is left, the first of the largest entries stays.
        place = torch.arange(rows.entries, device=at.device)
        first = rows.smallest(torch.where(at == rows.spread(rows.largest(at)), place, rows.entries).double())
        out.masked_fill_(rows.spread(alone) & (place == rows.spread(first)), 1.0)
        return dict(zip(self._matrices, parted(out, list(self._matrices.values()))))

    def _excess(self, mu: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over all vectors of `1 - sparsity`, and its derivative in mu."""
        left = (self._meets - mu).clamp_min_(0.0)
        total, count = self._rows.sums(left), self._rows.sums(left.sign())
        square = self._rows.sums(left.square_())
        alone = square == 0
        root = square.masked_fill(alone, 1.0).sqrt()
        ratio = (total / root).masked_fill(alone, 1.0)
        slope = -(count * square - total.square()) / root.pow(3)
        value = self._beta * (ratio - 1.0).clamp_min(0.0)
        return value.sum(), (self._beta * slope.masked_fill(alone, 0.0).clamp_max(0.0)).sum()
