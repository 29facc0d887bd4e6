"""Random numbers by a counter."""

from __future__ import annotations

from typing import Any

import numpy as np

from setpoint.functional.compiled.jit import kernel


@kernel(finite=True)
def fill(low: Any, high: Any, first: Any, out: Any) -> None:
    """Numbers in (0, 1] for as many places as there is room, of 32 bits each (see `setpoint.functional.counter`)."""
    for i in range(out.size):
        x = np.uint32(np.uint32(first + np.uint32(i)) * np.uint32(0x9E3779B1)) + low
        x = np.uint32(x)
        x = np.uint32(x ^ (x >> np.uint32(16)))
        x = np.uint32(np.uint32(x * np.uint32(0x85EBCA6B)) + high)
        x = np.uint32(x ^ (x >> np.uint32(13)))
        x = np.uint32(x * np.uint32(0xC2B2AE35))
        x = np.uint32(x ^ (x >> np.uint32(16)))
        out[i] = np.float32(np.uint32((x >> np.uint32(8)) + np.uint32(1))) * np.float32(2.0**-24)
