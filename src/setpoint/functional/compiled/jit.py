"""How kernels are compiled: on first use, without the interpreter's lock, and kept on disk where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def kernel(*, finite: bool, reordered: bool = True) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function.

    Args:
        finite: whether it is only called with what is known to be finite; otherwise NaN and infinity stay what they
            are.
        reordered: whether sums may be taken in another order, and products fused with them.
    """
    fast: Any = {"nnan", "ninf", "nsz"} if finite else False
    if reordered:
        fast = True if finite else {"reassoc", "contract", "nsz", "arcp"}
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fast}

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # there is no folder to write to
            return numba.njit(**options)(function)

    return compiled
