"""What is left of vectors whose entries are all brought nearer to zero by a threshold: sums over it, and itself.

A threshold tau is split into its value in the vector's own precision and a rest, which shifts the sums in closed form:
differences are then taken in that precision, and sums in float64. Both together cost little more than reading.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from setpoint.functional.compiled.jit import kernel

# Where what is left is within so many of the rest on average, the closed form would cancel.
_MARGIN = 1e4


@kernel(finite=False)
def norms(x: Any) -> Any:
    """Sum of magnitudes, and of squares."""
    total, square = 0.0, 0.0
    for i in range(x.size):
        v = np.float64(abs(x[i]))
        total += v
        square += v * v
    return total, square


@kernel(finite=True)
def left(x: Any, tau: float) -> Any:
    """Number, sum and sum of squares of what is left of a vector."""
    near = x.dtype.type(tau)
    zero, rest = x.dtype.type(0), tau - np.float64(near)
    count, total, square = 0.0, 0.0, 0.0
    for i in range(x.size):
        v = abs(x[i]) - near
        v = v if v > zero else zero
        w = np.float64(v)
        total += w
        square += w * w
        count += np.float64(v > zero)
    if total >= _MARGIN * abs(rest) * count:
        return count, total - count * rest, square - 2.0 * rest * total + count * rest * rest
    return _left_exact(x, tau)


@kernel(finite=True)
def _left_exact(x: Any, tau: float) -> Any:
    count, total, square = 0.0, 0.0, 0.0
    for i in range(x.size):
        v = np.float64(abs(x[i])) - tau
        v = v if v > 0.0 else 0.0
        total += v
        square += v * v
        count += np.float64(v > 0.0)
    return count, total, square


@kernel(finite=True)
def excess(count: float, total: float, square: float, per_mu: float, beta: float) -> Any:
    """`beta (l1 / l2 - 1)` of what is left of a vector, and its derivative in mu; nothing where nothing is."""
    if square <= 0.0:
        return 0.0, 0.0
    root = math.sqrt(square)
    slope = -per_mu * beta * max(count * square - total * total, 0.0) / (square * root)
    return beta * max(total / root - 1.0, 0.0), slope


@kernel(finite=True)
def shrink(x: Any, tau: float, scale: float, out: Any) -> None:
    """Write what is left, times a scale, with the signs of the vector."""
    for i in range(x.size):
        v = (np.float64(abs(x[i])) - tau) * scale
        v = v if v > 0.0 else 0.0
        out[i] = math.copysign(v, x[i])


@kernel(finite=True)
def fractions(x: Any, tau: float, scale: float, out: Any) -> None:
    """Write what is left, times a scale, as a fraction of each magnitude."""
    for i in range(x.size):
        a = np.float64(abs(x[i]))
        v = (a - tau) * scale
        out[i] = v / a if v > 0.0 else 0.0


@kernel(finite=True)
def first_largest(x: Any) -> Any:
    """Where the first entry of largest magnitude stands."""
    place = 0
    for i in range(x.size):
        if abs(x[i]) > abs(x[place]):
            place = i
    return place


@kernel(finite=False)
def norms_of_rows(x: Any, total: Any, square: Any) -> None:
    """`norms` of each row."""
    for r in range(x.shape[0]):
        total[r], square[r] = norms(x[r])


@kernel(finite=True)
def excess_of_rows(x: Any, per_mu: Any, mu: float, beta: float) -> Any:
    """Sums over the rows of their `excess` at thresholds `per_mu * mu`."""
    value, slope = 0.0, 0.0
    for r in range(x.shape[0]):
        count, total, square = left(x[r], per_mu[r] * mu)
        more, steeper = excess(count, total, square, per_mu[r], beta)
        value += more
        slope += steeper
    return value, slope


@kernel(finite=True)
def shrink_rows(x: Any, per_mu: Any, mu: float, out: Any, relative: bool) -> None:
    """Each row brought to its threshold and rescaled to the best multiple of what is left.

    Where nothing is left, the first largest entry stays alone. `relative` asks for fractions of the magnitudes.
    """
    for r in range(x.shape[0]):
        tau = per_mu[r] * mu
        _, total, square = left(x[r], tau)
        if square <= 0.0:
            place = first_largest(x[r])
            entry = x[r, place]
            out[r, :] = 0.0
            out[r, place] = 1.0 if relative else entry
        elif relative:
            fractions(x[r], tau, 1.0 + tau * total / square, out[r])
        else:
            shrink(x[r], tau, 1.0 + tau * total / square, out[r])
