"""Entries set to zero in place."""

from __future__ import annotations

from typing import Any

from setpoint.functional.compiled.jit import kernel


@kernel(finite=False)
def zero_marked(x: Any, marks: Any) -> None:
    """Set to zero what is marked by something other than 0."""
    zero = x.dtype.type(0)
    for i in range(x.size):
        x[i] = zero if marks[i] else x[i]
