"""Kernels compiled by numba: an optional accelerator for large float32 and float64 tensors on the CPU.

Eager operators read and write memory once each; one compiled loop does what ten of them do while it reads memory once.
Without the package (`pip install setpoint[fast]`), on other devices and for small tensors everything is computed
eagerly, with the same results.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}
_HALF = (torch.float16, torch.bfloat16)
# Entries under which eager operators are as fast, and no kernel is worth being loaded.
WORTH = 1 << 17


@cache
def installed() -> bool:
    """Whether numba is there."""
    return find_spec("numba") is not None


def usable(tensors: Sequence[Tensor], least: int = WORTH) -> bool:
    """Whether kernels can read these tensors, as they are or in `single`, and there are entries enough to gain."""
    return (
        sum(tensor.numel() for tensor in tensors) >= least
        and all(
            tensor.device.type == "cpu"
            and tensor.dtype in (*_DTYPES, *_HALF)
            and tensor.layout is torch.strided
            and type(tensor) in (Tensor, torch.nn.Parameter)
            for tensor in tensors
        )
        and installed()
    )


def single(tensor: Tensor) -> Tensor:
    """A tensor in float32 where it has half precision, whose numbers that holds exactly."""
    return tensor.float() if tensor.dtype in _HALF else tensor


def new_like(tensor: Tensor) -> Tensor:
    """An uninitialised tensor that lies in memory as another does."""
    if tensor.dtype not in _DTYPES or not tensor.is_contiguous() or not usable([tensor], least=1 << 20):
        return torch.empty_like(tensor)
    # Large ones from numpy, which unlike torch asks for huge pages: their first touch costs a third.
    return torch.from_numpy(np.empty(tensor.shape, _DTYPES[tensor.dtype]))
