"""The proximal map of the sparse envelope on magnitudes that are computed where they are looked at.

The same equation as in `setpoint.functional.envelope_search`, where costs, strength and metric are numbers a layer. A
sample gives two alphas that the budget most likely lies between. One pass then sums up the magnitudes that are zero,
whole or linear at both, and collects the others, few, among which the search ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from setpoint.functional.compiled import installed
from setpoint.functional.compiled.threads import Array
from setpoint.functional.envelope_search import Crossing, Ramps, crossing, crossing_between
from setpoint.functional.values import Computed, Values, each_piece

# Magnitudes of the sample, in runs of neighbours.
_SAMPLE, _RUN = 1 << 17, 16
# Deviations of what the sample costs, on either side of the budget.
_DEVIATIONS = (5.0, 25.0)
_SLACK = 1e-12


@dataclass(frozen=True)
class _Ramp:
    """The ramp of one layer's magnitudes r: `u = clip((alpha rate r - offset) / width, 0, 1)`, each u at a cost."""

    rate: float
    offset: float
    width: float
    cost: float

    def ends(self, alpha: float) -> tuple[float, float]:
        """Up to which magnitude u is 0, and from which on it is 1."""
        steep = alpha * self.rate
        return self.offset / steep, (self.offset + self.width) / steep

    def ramps(self, magnitudes: Array, share: float = 1.0) -> Ramps:
        """Of some magnitudes that stand for so many each."""
        score = torch.from_numpy(magnitudes.astype(np.float64)) * self.rate
        offset, width, cost = (
            torch.tensor(n, dtype=torch.float64) for n in (self.offset, self.width, self.cost * share)
        )
        return Ramps(score, offset, width, cost)


class EnvelopeFactors(Values):
    """What the map multiplies the magnitudes of one layer by."""

    def __init__(self, values: Values, ramp: _Ramp, found: Crossing, rho: float, debias: bool) -> None:
        super().__init__(values.shape, values.device, values.dtype)
        self._values, self._ramp, self._found = values, ramp, found
        self._base = (rho, 0.0, rho) if debias else (rho, rho, 0.0)

    def block(self, begin: int, end: int) -> Tensor:
        """Factors of some magnitudes."""
        return torch.from_numpy(self.piece(begin, end))

    def piece(self, begin: int, end: int) -> Array:
        """The same as an array."""
        magnitudes = self._values.piece(begin, end)
        out, ramp, found = np.empty_like(magnitudes), self._ramp, self._found
        kernels().ramp_factors(
            magnitudes, ramp.rate, found.lower, found.upper, found.theta, ramp.width, self._base, out
        )
        return out


def factors_of_values(
    values: Sequence[Values], budget: float, rho: Sequence[float], costs: Sequence[float], *, debias: bool
) -> list[Values | None]:
    """The factors of `prox_group_envelope`, to be applied piece by piece.

    Args:
        values: of the layers, on the CPU and finite: single weights, or norms of groups.
        budget: above 0.
        rho: by layer, the strength by the metric; above 0, and at most 1 if de-biased.
        costs: by layer, of one unit; above 0.
        debias: take the de-biased map.

    Returns:
        By layer; None where all factors are 1.
    """
    peak = max((float(v.peak) for v in values), default=0.0) or 1.0
    ramps = [
        _Ramp(1.0 / (math.sqrt(d) * peak), r, max(1.0 - r, 1e-200) if debias else 1.0, d) for r, d in zip(rho, costs)
    ]
    found = _sampled_crossing(values, ramps, budget)
    if found is None:
        alive = each_piece(values, lambda i, a, b: int(np.count_nonzero(values[i].piece(a, b) > 0)))
        total = sum(d * sum(counts) for d, counts in zip(costs, alive))
        if total <= budget * (1.0 + _SLACK):
            return [None if debias else _uniform(v, 1.0 / (1.0 + r)) for v, r in zip(values, rho)]
        # Whatever the sample says: all of them, as they are searched elsewhere.
        found = crossing([ramp.ramps(v.piece(0, v.numel())) for v, ramp in zip(values, ramps)], budget, total)
    return [EnvelopeFactors(v, ramp, found, r, debias) for v, ramp, r in zip(values, ramps, rho)]


def _uniform(like: Values, factor: float) -> Values:
    return Computed(like, like.dtype, lambda a, b: torch.full((b - a,), factor, dtype=like.dtype))


def _sampled_crossing(values: Sequence[Values], ramps: Sequence[_Ramp], budget: float) -> Crossing | None:
    """Where the budget is met, if it is where a sample says."""
    for deviations in _DEVIATIONS:
        lower, upper = _bracket(values, ramps, budget, deviations)
        if 0.0 < lower < upper and (found := _within(values, ramps, budget, lower, upper)) is not None:
            return found
    return None


def _bracket(values: Sequence[Values], ramps: Sequence[_Ramp], budget: float, deviations: float) -> tuple[float, float]:
    """Two alphas that the budget most likely lies between; not in order where the sample says nothing."""
    step = max(_RUN, sum(v.numel() for v in values) // _SAMPLE * _RUN)
    samples = [v.sample(step, _RUN) for v in values]
    shares = [v.numel() / max(1, len(sample)) for v, sample in zip(values, samples)]
    some = [ramp.ramps(sample, share) for ramp, sample, share in zip(ramps, samples, shares)]
    total = sum(r.total() for r in some)
    spread = deviations * 0.5 * math.sqrt(sum((r.cost**2 * int((r.score > 0).sum())).item() for r in some))
    below, above = max(budget - spread, 0.25 * budget), min(budget + spread, 0.75 * total + 0.25 * budget)
    if not 0.0 < below < above < total:
        return 0.0, 0.0
    return crossing(some, below, total).lower, crossing(some, above, total).upper


def _within(
    values: Sequence[Values], ramps: Sequence[_Ramp], budget: float, lower: float, upper: float
) -> Crossing | None:
    """Where the budget is met, if that is between two alphas."""
    first, last = [ramp.ends(lower) for ramp in ramps], [ramp.ends(upper) for ramp in ramps]
    kernel = kernels().ramp_sums
    # In the magnitudes' precision, rounded so that nothing is counted that may be on the other side.
    edges = [
        (_rounded(b[0], v, -1), _rounded(a[0], v, 1), _rounded(b[1], v, -1), _rounded(a[1], v, 1))
        for v, a, b in zip(values, first, last)
    ]

    def look(i: int, a: int, b: int) -> tuple[int, int, float, Array]:
        piece = values[i].piece(a, b)
        found = np.empty(piece.size + 1, piece.dtype)
        bounds = edges[i]
        whole, rising, total, inside = kernel(piece, *bounds, found)
        return whole, rising, total, found[:inside].copy()

    below = above = 0.0
    level, kinked = budget, []
    for ramp, pieces in zip(ramps, each_piece(values, look)):
        level -= ramp.cost * sum(whole for whole, _, _, _ in pieces)
        rising, total = sum(n for _, n, _, _ in pieces), math.fsum(t for _, _, t, _ in pieces)
        per_alpha, taken = ramp.cost * ramp.rate * total / ramp.width, ramp.cost * ramp.offset * rising / ramp.width
        below += lower * per_alpha - taken
        above += upper * per_alpha - taken
        kinked.append(ramp.ramps(np.concatenate([found for _, _, _, found in pieces] or [np.empty(0)])))
    left = [ramp for ramp in kinked if ramp.score.numel()]
    spent = [sum(r.spent(alpha) for r in left) for alpha in (lower, upper)]
    if not below + spent[0] <= level <= above + spent[1]:
        return None
    return crossing_between(left, lower, upper, below, above, level, budget)


def _rounded(number: float, like: Values, direction: int) -> Any:
    kind = np.float64 if like.dtype == torch.float64 else np.float32
    with np.errstate(over="ignore"):
        return np.nextafter(kind(number), kind(direction * math.inf))


class _Eager:
    """The kernels in numpy's operators."""

    @staticmethod
    def ramp_sums(
        x: Array, zero: float, first: float, last: float, whole: float, found: Array
    ) -> tuple[int, int, float, int]:
        """As the kernel of that name."""
        full, linear = x >= whole, (x >= first) & (x <= last) & (x < whole)
        others = x[(x > zero) & ~full & ~linear]
        found[: others.size] = others
        rising = x[linear]
        return int(np.count_nonzero(full)), rising.size, float(rising.sum(dtype=np.float64)), others.size

    @staticmethod
    def ramp_factors(
        x: Array,
        rate: float,
        low: float,
        high: float,
        theta: float,
        width: float,
        base: tuple[float, float, float],
        out: Array,
    ) -> None:
        """As the kernel of that name."""
        score = x.astype(np.float64) * rate
        u = np.clip((score * low - base[0]) / width, 0.0, 1.0)
        if theta:
            u += theta * (np.clip((score * high - base[0]) / width, 0.0, 1.0) - u)
        below = u + base[1] + base[2] * (1.0 - u)
        out[:] = np.divide(u, below, out=np.zeros_like(u), where=below > 0)


@cache
def kernels() -> Any:
    """Compiled where numba is there."""
    if not installed():
        return _Eager
    from setpoint.functional.compiled import ramps

    return ramps
