"""Grouped Sparse Projection: bring a set of vectors to an average Hoyer sparsity.

Source: R. Ohib, N. Gillis, N. Dalmasso, S. Shah, V. K. Potluru, S. Plis, "Explicit group sparse projection with
applications to deep learning and NMF", TMLR 2022. With `a = |x|` and `beta = 1 / (sqrt(n) - 1)` per vector, it solves

    maximise  sum_i a_i'u_i   subject to  |u_i|_2 = 1,  u_i >= 0,  sum_i beta_i |u_i|_1 <= sum_i beta_i + r (1 - s)

and answers `sign(x_i) (a_i'u_i) u_i`. One multiplier mu decides all: `u_i` is parallel to `(a_i - mu beta_i)_+`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from setpoint.functional.root import monotone_root

# Peaks this near to one another (relative) are treated as equal: no double-precision mu separates them reliably.
_TIE = 1e-12
# Accepted error in the average sparsity.
_TOLERANCE = 1e-10


@overload
def project_gsp(
    vectors: Tensor, sparsity: float, weights: Tensor | None = None, *, scale_invariant: bool = False
) -> Tensor: ...
@overload
def project_gsp(
    vectors: Sequence[Tensor],
    sparsity: float,
    weights: Sequence[Tensor] | None = None,
    *,
    scale_invariant: bool = False,
) -> list[Tensor]: ...
@torch.no_grad()
def project_gsp(
    vectors: Tensor | Sequence[Tensor],
    sparsity: float,
    weights: Tensor | Sequence[Tensor] | None = None,
    *,
    scale_invariant: bool = False,
) -> Tensor | list[Tensor]:
    """Project a set of vectors to an average Hoyer sparsity of at least `sparsity`.

    The result has exactly that average (to 1e-10, before it is rounded to the input's dtype), unless the input has
    more already: then it is returned as it is. Where several entries of a vector tie at its maximum, so that no
    threshold gives the average asked, the tied entries are filled unequally (the first gets most), which is an exact
    optimum too. With weights, some averages can only be exceeded: the next higher one is taken.

    Vectors of zeros count as sparsity 1 and stay zero. Vectors of fewer than two entries have no Hoyer sparsity: they
    are left out of the average and copied. Signs and the order of magnitudes are kept.

    Args:
        vectors: a matrix, whose rows are the vectors; a 1-D tensor, which is one vector; or a sequence of these, all
            projected as one set. Any real floating dtype and device; computed in float64.
        sparsity: average to reach, in [0, 1].
        weights: same shape or shapes as `vectors`, non-negative: the weighted Hoyer measure, in which entries of
            large weight are driven out first.
        scale_invariant: project the vectors at unit length and give them their scale back. Without it (the paper's
            form) vectors of small norm take most of the sparsity, down to a single entry each.

    Returns:
        New tensors of the same shapes, dtypes and structure.

    Raises:
        ValueError: for a sparsity outside [0, 1], NaN or infinite entries, negative weights, or shapes that differ.
    """
    _check_sparsity(sparsity)
    single = isinstance(vectors, Tensor)
    tensors: list[Tensor] = [vectors] if isinstance(vectors, Tensor) else list(vectors)
    spread = [weights] if isinstance(weights, Tensor) else weights
    if spread is not None and len(spread) != len(tensors):
        raise ValueError(f"{len(spread)} tensors of weights were given for {len(tensors)} tensors of vectors")
    rows = [_as_rows(tensor, i) for i, tensor in enumerate(tensors)]
    weight_rows = None if spread is None else [_weight_rows(w, t, i) for i, (w, t) in enumerate(zip(spread, tensors))]
    factors = gsp_factors(rows, sparsity, weight_rows, scale_invariant=scale_invariant)
    out = [t.clone() if f is None else _scaled(t, f) for t, f in zip(tensors, factors)]
    return out[0] if single else out


def gsp_factors(
    rows: Sequence[Tensor],
    sparsity: float,
    weights: Sequence[Tensor] | None = None,
    *,
    scale_invariant: bool = False,
) -> list[Tensor | None]:
    """What each entry is multiplied by in the projection of `project_gsp`.

    Args:
        rows: matrices whose rows are the vectors' magnitudes, non-negative and finite.
        sparsity, weights, scale_invariant: as in `project_gsp`.

    Returns:
        A float64 matrix of factors for each matrix, or None where its rows stay as they are.
    """
    members = [_Vectors.of(r, None if weights is None else weights[i], scale_invariant) for i, r in enumerate(rows)]
    active = [m for m in members if m is not None]
    count = sum(m.count for m in active)
    level = count * (1.0 - sparsity)
    if count == 0 or _excess(active, 0.0)[0] <= level + _TOLERANCE * count:
        return [None] * len(members)
    if sparsity == 1.0:
        return [None if m is None else m.peak_factors() for m in members]
    upper = _upper_end(active, level)
    root = monotone_root(
        lambda mu: _excess(active, mu), 0.0, upper, level=level, tolerance=_TOLERANCE * count, start=_guess(active)
    )
    if root.converged:
        return [None if m is None else m.factors(root.x) for m in members]
    return _filled(members, root.lower, root.upper, level)


def mean_hoyer(rows: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> float:
    """Average Hoyer sparsity of all rows of at least two entries; 1 if there is none."""
    members = [_Vectors.of(r, None if weights is None else weights[i], False) for i, r in enumerate(rows)]
    active = [m for m in members if m is not None]
    count = sum(m.count for m in active)
    return 1.0 - _excess(active, 0.0)[0] / count if count else 1.0


@dataclass(frozen=True)
class _Vectors:
    """Vectors of one length: each scaled to a peak of 1, so that squares neither overflow nor vanish.

    `threshold` is what one unit of mu subtracts from the scaled entries, `beta` what one unit of a unit vector's
    (weighted) l1 norm adds to the average, both as columns.
    """

    entries: Tensor
    threshold: Tensor
    beta: Tensor
    weights: Tensor | None

    @classmethod
    def of(cls, rows: Tensor, weights: Tensor | None, scale_invariant: bool) -> _Vectors | None:
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
        return int((self.beta > 0).sum())

    def shrunk(self, mu: float) -> Tensor:
        """(a - tau)_+ in scaled entries."""
        tau = self.threshold * mu
        return (self.entries - (tau if self.weights is None else tau * self.weights)).clamp_min_(0.0)

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
        ratio = torch.where(alone, self._last_weight(mu, v) if self.weights is not None else least, total / root)
        slope = -(self.threshold * self.beta) * (active * square - total.square()) / root.pow(3)
        return self.beta * (ratio - least).clamp_min(0.0), slope.masked_fill(alone, 0.0).clamp_max(0.0)

    def _last_weight(self, mu: float, v: Tensor) -> Tensor:
        """Weight of the one entry that is left once all are below their thresholds."""
        assert self.weights is not None
        return self.weights.gather(1, self._last(mu, v))

    def _last(self, mu: float, v: Tensor) -> Tensor:
        tau = self.threshold * mu
        gain = self.entries - (tau if self.weights is None else tau * self.weights)
        zero = self.entries.amax(1, keepdim=True) == 0
        if self.weights is not None:  # a vector of zeros counts as sparsity 1
            gain = torch.where(zero, -self.weights, gain)
        return gain.argmax(1, keepdim=True)

    def factors(self, mu: float) -> Tensor:
        """The projection divided by the input, entry by entry."""
        v = self.shrunk(mu)
        square = v.square().sum(1, keepdim=True)
        alone = square == 0
        gain = (self.entries * v).sum(1, keepdim=True) / square.masked_fill(alone, 1.0)
        out = v * gain / self.entries.masked_fill(self.entries == 0, 1.0)
        last = torch.zeros_like(out).scatter_(1, self._last(mu, v), 1.0)
        return torch.where(self.beta > 0, torch.where(alone, last, out), torch.ones_like(out))

    def peak_factors(self) -> Tensor:
        """The limit of sparsity 1: the entry of least weight, among those the first of largest size, stays alone."""
        order = self.entries
        if self.weights is not None:
            order = order.masked_fill(self.weights > self.weights.amin(1, keepdim=True), -1.0)
        alone = torch.zeros_like(self.entries).scatter_(1, order.argmax(1, keepdim=True), 1.0)
        return torch.where(self.beta > 0, alone, torch.ones_like(alone))

    def peaks(self) -> Tensor:
        """mu at which the last entry of each vector meets its threshold (infinite where a weight of 0 forbids it)."""
        slope = self.threshold if self.weights is None else self.threshold * self.weights
        at = torch.where(self.entries > 0, self.entries / slope, torch.zeros_like(self.entries))
        return at.amax(1, keepdim=True).masked_fill(self.beta == 0, 0.0)

    def tied(self, lower: float, upper: float) -> tuple[Tensor, Tensor]:
        """Vectors whose tied last entries vanish between two values of mu, and which entries those are."""
        slope = self.threshold if self.weights is None else self.threshold * self.weights
        at = torch.where(self.entries > 0, self.entries / slope, torch.zeros_like(self.entries))
        peak = self.peaks()
        entries = (at >= peak * (1.0 - _TIE)) & (self.entries > 0)
        inside = (peak >= lower * (1.0 - _TIE)) & (peak <= upper * (1.0 + _TIE)) & (self.beta > 0)
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


def _excess(active: Sequence[_Vectors], mu: float) -> tuple[float, float]:
    """Sum over all vectors of `1 - sparsity`, and its derivative in mu."""
    parts = [m.excess(mu) for m in active]
    return sum(float(e.sum()) for e, _ in parts), sum(float(s.sum()) for _, s in parts)


def _guess(active: Sequence[_Vectors]) -> float:
    """First point of the search: the middle of the thresholds' range, where Newton's steps are of use."""
    scale = max(float((m.entries.mean(1, keepdim=True) / m.threshold.clamp_min(1e-300)).mean()) for m in active)
    return 0.5 * scale


def _upper_end(active: Sequence[_Vectors], level: float) -> float:
    peaks = torch.cat([m.peaks().flatten() for m in active])
    upper = float(peaks[peaks.isfinite()].max()) * (1.0 + _TIE)
    # Beyond the last peak the weighted problem still drifts towards entries of less weight.
    for _ in range(1000):
        if _excess(active, upper)[0] <= level:
            break
        upper *= 2.0
    return upper


def _filled(members: Sequence[_Vectors | None], lower: float, upper: float, level: float) -> list[Tensor | None]:
    """The optimum inside a jump: tied entries share one fraction of the way from all of them to the first.

    Where the jump is not one of ties (weighted vectors past their last peak), the sparser side is taken.
    """
    ties = [None if m is None else m.tied(lower, upper) for m in members]
    others, room = 0.0, 0.0
    for m, tie in zip(members, ties):
        if m is None or tie is None:
            continue
        which, entries = tie
        _, _, most, least = m.arc(entries)
        base = least - (1.0 if m.weights is None else m.weights.amin(1, keepdim=True))
        others += float(torch.where(which, m.beta * base, m.excess(upper)[0]).sum())
        room += float((m.beta * (most - least))[which].sum())
    if room <= 0.0:
        return [None if m is None else m.factors(upper) for m in members]
    theta = min(max((level - others) / room, 0.0), 1.0)
    out: list[Tensor | None] = []
    for m, tie in zip(members, ties):
        if m is None or tie is None:
            out.append(None)
            continue
        which, entries = tie
        out.append(torch.where(which, _arc_factors(m, entries, theta), m.factors(upper)))
    return out


def _arc_factors(m: _Vectors, entries: Tensor, theta: float) -> Tensor:
    """Factors of the point on the arc whose `w'u` lies a fraction theta above the least."""
    flat, corner, most, least = m.arc(entries)
    cosine = ((least + theta * (most - least)) / most.masked_fill(most == 0, 1.0)).clamp(max=1.0)
    tilt = (least / most.masked_fill(most == 0, 1.0)).clamp(max=1.0)
    across = (corner - tilt * flat) / (1.0 - tilt.square()).clamp_min(1e-300).sqrt()
    unit = (cosine * flat + (1.0 - cosine.square()).sqrt() * across).clamp_min(0.0)
    gain = (m.entries * unit).sum(1, keepdim=True)
    return gain * unit / m.entries.masked_fill(m.entries == 0, 1.0)


def _check_sparsity(sparsity: float) -> None:
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity={sparsity} is not a Hoyer sparsity: it must lie in [0, 1]")


def _as_rows(tensor: Tensor, position: int) -> Tensor:
    if tensor.ndim not in (1, 2):
        raise ValueError(
            f"tensor {position} has shape {tuple(tensor.shape)}: give a matrix of row vectors or a single vector "
            "(for a convolution weight, w.flatten(1) makes a vector of each filter, w.flatten() one of the layer)"
        )
    if not tensor.is_floating_point():
        raise ValueError(f"tensor {position} has dtype {tensor.dtype}: a floating dtype is needed")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"tensor {position} holds NaN or infinite entries")
    return tensor.abs().reshape(1, -1) if tensor.ndim == 1 else tensor.abs()


def _weight_rows(weights: Tensor, tensor: Tensor, position: int) -> Tensor:
    if weights.shape != tensor.shape:
        raise ValueError(
            f"the weights of tensor {position} have shape {tuple(weights.shape)}, its vectors {tuple(tensor.shape)}"
        )
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise ValueError(f"the weights of tensor {position} must be finite and not negative")
    return weights.reshape(1, -1) if weights.ndim == 1 else weights


def _scaled(tensor: Tensor, factors: Tensor) -> Tensor:
    return (tensor.to(torch.float64) * factors.reshape(tensor.shape)).to(tensor.dtype)
