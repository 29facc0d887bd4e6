"""Entries set to zero in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from setpoint.functional.compiled.jit import kernel

# Entries that are looked at together, and written only if one of them has to be.
_BLOCK = 64


@kernel(finite=False)
def zero_marked(x: Any, bits: Any, marks: Any) -> None:
    """Set to zero what is marked by 1 rather than 0: to +0.0, whatever its sign.

    Args:
        x: the entries.
        bits: the same as unsigned integers of the same bits.
        marks: 0 or 1 for each.
    """
    zero = x.dtype.type(0)
    for begin in range(0, x.size, _BLOCK):
        block, codes, some = x[begin : begin + _BLOCK], bits[begin : begin + _BLOCK], marks[begin : begin + _BLOCK]
        moved = np.uint8(0)
        for i in range(block.size):
            moved |= some[i] & np.uint8(codes[i] != 0)
        if moved:
            for i in range(block.size):
                block[i] = zero if some[i] else block[i]


@kernel(finite=False)
def zero_marked_checked(x: Any, bits: Any, exponent: Any, marks: Any) -> Any:
    """Set to zero what is marked by 1; whether all entries were finite, those that are marked as well.

    Args:
        x: the entries.
        bits: the same as unsigned integers of the same bits.
        exponent: the bits of infinity: those of the exponent.
        marks: 0 or 1 for each.
    """
    zero, top = x.dtype.type(0), bits.dtype.type(0)
    for begin in range(0, x.size, _BLOCK):
        block, codes, some = x[begin : begin + _BLOCK], bits[begin : begin + _BLOCK], marks[begin : begin + _BLOCK]
        for i in range(block.size):
            top = max(top, codes[i] & exponent)
        for i in range(block.size):
            block[i] = zero if some[i] else block[i]
    return top < exponent
