"""Random numbers by a counter: each is a function of a key and its place, so that none has to be stored.

The place times an odd constant, plus half of the key, goes through the last mixing steps of MurmurHash3 (A. Appleby),
which spread every bit over the others. The other half of the key is added between them: without it the numbers of all
keys were one sequence, begun at different places. They are the same on all devices, in whatever pieces they are drawn.
"""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from setpoint.functional.compiled import installed
from setpoint.functional.compiled.threads import Array

_STEP, _FIRST, _SECOND = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35
_WORD = 0xFFFFFFFF
# Numbers from which on a kernel is worth being called.
_MANY = 1 << 14


def key_of(*parts: object) -> int:
    """A key of 64 bits for what some numbers are drawn for, such as a seed, a step and a name."""
    return int.from_bytes(blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest(), "little")


def uniform(key: int, begin: int, end: int, device: torch.device | None = None) -> Tensor:
    """Numbers in (0, 1] for the places from `begin` up to `end`, multiples of 2^-24: float32, 1-D."""
    if device is None or device.type == "cpu":
        return torch.from_numpy(uniform_array(key, begin, end))
    x = torch.arange(begin, end, device=device)
    x = _scrambled(x, _low(key, x >> 32), key >> 32)
    return ((x >> 8) + 1).float() * 2.0**-24


def uniform_array(key: int, begin: int, end: int) -> Array:
    """The same as an array."""
    out = np.empty(end - begin, np.float32)
    while begin < end:
        # Within places that have their upper 32 bits in common.
        stop = min(end, (begin | _WORD) + 1)
        part = out[len(out) - (end - begin) : len(out) - (end - stop)]
        fill = _fill() if stop - begin >= _MANY else _fill_eager
        fill(np.uint32(_low(key, begin >> 32)), np.uint32(key >> 32), np.uint32(begin & _WORD), part)
        begin = stop
    return out


def _low(key: int, upper: Any) -> Any:
    """Half of the key, another one for each 2^32 places."""
    return ((key & _WORD) + upper * _FIRST) & _WORD


def _scrambled(x: Tensor, low: Any, high: int) -> Tensor:
    x = ((x & _WORD) * _STEP + low) & _WORD
    x = ((x ^ (x >> 16)) * _FIRST + high) & _WORD
    x = ((x ^ (x >> 13)) * _SECOND) & _WORD
    return x ^ (x >> 16)


@cache
def _fill() -> Any:
    if not installed():
        return _fill_eager
    from setpoint.functional.compiled.counter import fill

    return fill


def _fill_eager(low: np.uint32, high: np.uint32, first: np.uint32, out: Array) -> None:
    with np.errstate(over="ignore"):
        x = np.arange(out.size, dtype=np.uint32) + first
        x *= np.uint32(_STEP)
        x += low
        for shift, factor, added in ((16, _FIRST, high), (13, _SECOND, np.uint32(0))):
            x ^= x >> np.uint32(shift)
            x *= np.uint32(factor)
            x += added
        x ^= x >> np.uint32(16)
        x >>= np.uint32(8)
        x += np.uint32(1)
    np.multiply(x, np.float32(2.0**-24), out=out, casting="same_kind")
