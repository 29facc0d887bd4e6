"""Which magnitudes lie above a threshold, and which near to it."""

from __future__ import annotations

from typing import Any

import numpy as np

from setpoint.functional.compiled.jit import kernel

# Magnitudes that are looked at together: one that none of is between the bounds is not looked at again.
_BLOCK = 64


@kernel(finite=False)
def between(x: Any, bits: Any, largest: Any, low: Any, high: Any, found: Any) -> Any:
    """Count the magnitudes above two bounds, and copy those that lie between.

    Args:
        x: magnitudes.
        bits: the same as unsigned integers of the same bits.
        largest: the bits of the largest finite number; negative numbers, infinity and NaN are above.
        low, high: bounds, `low < m <= high` is copied.
        found: where to; if there are more, the rest is counted only.

    Returns:
        How many are above `high`; how many lie between; whether all are finite and not negative.
    """
    above, inside, bad = 0, 0, 0
    for begin in range(0, x.size, _BLOCK):
        block, codes = x[begin : begin + _BLOCK], bits[begin : begin + _BLOCK]
        over, under = np.int32(0), np.int32(0)
        for i in range(block.size):
            over += np.int32(block[i] > high)
            under += np.int32(block[i] > low)
            bad |= np.int32(codes[i] > largest)
        above += over
        if under > over:
            for i in range(block.size):
                if low < block[i] <= high:
                    if inside < found.size:
                        found[inside] = block[i]
                    inside += 1
    return above, inside, bad == 0


@kernel(finite=False)
def mark_above(x: Any, threshold: Any, out: Any) -> Any:
    """Mark magnitudes above a threshold; how many there are."""
    count = 0
    for begin in range(0, x.size, _BLOCK):
        block, marks = x[begin : begin + _BLOCK], out[begin : begin + _BLOCK]
        over = np.int32(0)
        for i in range(block.size):
            marks[i] = block[i] > threshold
            over += np.int32(block[i] > threshold)
        count += over
    return count
