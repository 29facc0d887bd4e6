"""Groups of one weight under the sparse envelope: sums over their ramps, and what they are multiplied by."""

from __future__ import annotations

from typing import Any

import numpy as np

from setpoint.functional.compiled.jit import kernel

# Magnitudes that are summed in their own precision before their sum is added in double.
_BLOCK = 256


@kernel(finite=True)
def ramp_sums(x: Any, zero: Any, first: Any, last: Any, whole: Any, found: Any) -> Any:
    """Sums over magnitudes whose place on the ramp does not change between two alphas, and those of which it does.

    Args:
        x: magnitudes.
        zero: those up to this one are zero at both.
        first, last: those from one to the other rise linearly at both.
        whole: those from this one on are whole at both.
        found: where the others are copied to; room for one more than there are magnitudes.

    Returns:
        How many are whole; how many rise linearly, and their sum; how many others there are.
    """
    full, rising, total = np.int64(0), np.int64(0), 0.0
    nothing = x.dtype.type(0)
    for begin in range(0, x.size, _BLOCK):
        block = x[begin : begin + _BLOCK]
        some, more, part = np.int32(0), np.int32(0), nothing
        for i in range(block.size):
            v = block[i]
            linear = (v >= first) & (v <= last) & (v < whole)
            some += np.int32(v >= whole)
            more += np.int32(linear)
            part += v if linear else nothing
        full += some
        rising += more
        total += np.float64(part)
    inside = 0
    if zero < first or last < whole:
        # Written in any case, and kept or overwritten by the next: which of them counts cannot be foreseen.
        for i in range(x.size):
            v = x[i]
            found[inside] = v
            inside += int((v > zero) & (v < whole) & ((v < first) | (v > last)))
    return full, rising, total, inside


@kernel(finite=True, reordered=False)
def ramp_factors(x: Any, rate: float, low: Any, high: Any, theta: float, width: float, base: Any, out: Any) -> None:
    """The factor of each magnitude, from its place on the ramp between two alphas.

    Args:
        x: magnitudes.
        rate: the score of a magnitude is so many times itself.
        low, high: the alphas.
        theta: how far between their shares, in [0, 1].
        width: of the ramp.
        base: offset of the ramp, which is the penalty's strength; what of it divides in any case, and what divides by
            how far a magnitude is from whole.
        out: where the factors go, of the magnitudes' dtype.
    """
    kind = x.dtype.type
    one, nothing = kind(1), kind(0)
    offset, always, rest = base[0], kind(base[1]), kind(base[2])
    part = 1.0 / width
    for i in range(x.size):
        score = np.float64(x[i]) * rate
        lifted, further = score * low - offset, score * high - offset
        u = 1.0 if lifted >= width else max(lifted * part, 0.0)
        w = 1.0 if further >= width else max(further * part, 0.0)
        share = kind(u + theta * (w - u))
        below = share + always + rest * (one - share)
        out[i] = share / below if below > nothing else nothing
