"""Vectors of one length in the dual of the grouped sparse projection: everything that one multiplier mu decides.

Each vector is scaled to a peak of 1, so that squares neither overflow nor vanish; all sums are in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Peaks this near to one another (relative) are treated as equal: no double-precision mu separates them reliably.
TIE = 1e-12


@dataclass(frozen=True)
class Vectors:
    """Vectors of one length as the rows of a matrix.

    `threshold` is what one unit of mu subtracts from the scaled entries, `beta` what one unit of a unit vector's
    (weighted) l1 norm adds to the average, both as columns.
    """

    entries: Tensor
    threshold: Tensor
    beta: Tensor
    weights: Tensor | None

    @classmethod
    def of(cls, rows: Tensor, weights: Tensor | None, scale_invariant: bool) -> Vectors | None:
        """Prepare non-negative rows; None if there are none, or none with a Hoyer sparsity."""
        count, length = rows.shape
        if count == 0 or length < 2:
            return None
        entries = rows.to(torch.float64)
        peak = entries.amax(1, keepdim=True)
        scale = peak.masked_fill(peak == 0, 1.0)
        entries = entries / scale
        if weights is None:
            beta = torch.full_like(peak, 1.0 / (length**0.5 - 1.0))
        else:
            weights = weights.to(torch.float64)
            slack = torch.linalg.vector_norm(weights, dim=1, keepdim=True) - weights.amin(1, keepdim=True)
            # All weight on one entry: the measure is 0/0, the vector takes no part (as if of length one).
            beta = (1.0 / slack).masked_fill(slack <= 0, 0.0)
        if scale_invariant:
            norm = torch.linalg.vector_norm(entries, dim=1, keepdim=True)
            threshold = beta * norm.masked_fill(norm == 0, 1.0)
        else:
            threshold = beta / scale
        return cls(entries, threshold, beta, weights)

    @property
    def count(self) -> int:
        """How many of the vectors take part in the average."""
        return int((self.beta > 0).sum())

    @property
    def slopes(self) -> Tensor:
        """What one unit of mu subtracts from each entry (a column where the weights are equal)."""
        return self.threshold if self.weights is None else self.threshold * self.weights

    def shrunk(self, mu: float) -> Tensor:
        """(a - tau)_+ in scaled entries."""
        return (self.entries - self.slopes * mu).clamp_min_(0.0)

    def excess(self, mu: float) -> tuple[Tensor, Tensor]:
        """`beta (w'u - min w)` of each vector and its derivative in mu (zero where one entry is left)."""
        v = self.shrunk(mu)
        square = v.square().sum(1, keepdim=True)
        if self.weights is None:
            total, active = v.sum(1, keepdim=True), (v > 0).sum(1, keepdim=True)
            least = torch.ones_like(square)
        else:
            total = (self.weights * v).sum(1, keepdim=True)
            active = (self.weights.square() * (v > 0)).sum(1, keepdim=True)
            least = self.weights.amin(1, keepdim=True)
        alone = square == 0
        root = square.masked_fill(alone, 1.0).sqrt()
        ratio = torch.where(alone, self._last_weight(mu) if self.weights is not None else least, total / root)
        slope = -(self.threshold * self.beta) * (active * square - total.square()) / root.pow(3)
        return self.beta * (ratio - least).clamp_min(0.0), slope.masked_fill(alone, 0.0).clamp_max(0.0)

    def _last_weight(self, mu: float) -> Tensor:
        """Weight of the one entry that is left once all are below their thresholds."""
        assert self.weights is not None
        return self.weights.gather(1, self._last(mu))

    def _last(self, mu: float) -> Tensor:
        gain = self.entries - self.slopes * mu
        if self.weights is not None:  # a vector of zeros counts as sparsity 1
            gain = torch.where(self.entries.amax(1, keepdim=True) == 0, -self.weights, gain)
        return gain.argmax(1, keepdim=True)

    def factors(self, mu: float) -> Tensor:
        """The projection divided by the input, entry by entry."""
        v = self.shrunk(mu)
        square = v.square().sum(1, keepdim=True)
        alone = square == 0
        gain = (self.entries * v).sum(1, keepdim=True) / square.masked_fill(alone, 1.0)
        out = v * gain / self.entries.masked_fill(self.entries == 0, 1.0)
        last = torch.zeros_like(out).scatter_(1, self._last(mu), 1.0)
        return torch.where(self.beta > 0, torch.where(alone, last, out), torch.ones_like(out))

    def peak_factors(self) -> Tensor:
        """The limit of sparsity 1: the entry of least weight, among those the first of largest size, stays alone."""
        order = self.entries
        if self.weights is not None:
            order = order.masked_fill(self.weights > self.weights.amin(1, keepdim=True), -1.0)
        alone = torch.zeros_like(self.entries).scatter_(1, order.argmax(1, keepdim=True), 1.0)
        return torch.where(self.beta > 0, alone, torch.ones_like(alone))

    def _meetings(self) -> Tensor:
        """mu at which each entry meets its threshold."""
        return torch.where(self.entries > 0, self.entries / self.slopes, torch.zeros_like(self.entries))

    def peaks(self) -> Tensor:
        """mu at which the last entry of each vector meets its threshold (infinite where a weight of 0 forbids it)."""
        return self._meetings().amax(1, keepdim=True).masked_fill(self.beta == 0, 0.0)

    def tied(self, lower: float, upper: float) -> tuple[Tensor, Tensor]:
        """Vectors whose tied last entries vanish between two values of mu, and which entries those are."""
        at, peak = self._meetings(), self.peaks()
        entries = (at >= peak * (1.0 - TIE)) & (self.entries > 0)
        inside = (peak >= lower * (1.0 - TIE)) & (peak <= upper * (1.0 + TIE)) & (self.beta > 0)
        return inside & (entries.sum(1, keepdim=True) > 1), entries

    def arc(self, entries: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The unit vectors between all tied entries and the first one of least weight.

        Returns the two ends `w_T/|w_T|` and `e`, the largest `w'u` on the arc, `|w_T|`, and the least, `w_e`.
        """
        weights = torch.ones_like(self.entries) if self.weights is None else self.weights
        inside = weights * entries
        norm = torch.linalg.vector_norm(inside, dim=1, keepdim=True)
        first = inside.masked_fill(~entries, torch.inf).argmin(1, keepdim=True)
        corner = torch.zeros_like(inside).scatter_(1, first, 1.0)
        return inside / norm.masked_fill(norm == 0, 1.0), corner, norm, inside.gather(1, first)

    def arc_factors(self, entries: Tensor, theta: float) -> Tensor:
        """Factors of the point on the arc whose `w'u` lies a fraction theta above the least."""
        flat, corner, most, least = self.arc(entries)
        cosine = ((least + theta * (most - least)) / most.masked_fill(most == 0, 1.0)).clamp(max=1.0)
        tilt = (least / most.masked_fill(most == 0, 1.0)).clamp(max=1.0)
        across = (corner - tilt * flat) / (1.0 - tilt.square()).clamp_min(1e-300).sqrt()
        unit = (cosine * flat + (1.0 - cosine.square()).sqrt() * across).clamp_min(0.0)
        gain = (self.entries * unit).sum(1, keepdim=True)
        return gain * unit / self.entries.masked_fill(self.entries == 0, 1.0)
