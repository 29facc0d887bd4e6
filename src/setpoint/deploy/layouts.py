"""How tensors lie in memory: their strides, written and put back exactly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from setpoint.deploy.words import words_dtype


def usual_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides that torch gives a new tensor of a shape."""
    return torch.empty(tuple(shape), device="meta").stride()


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the entries fill their memory, each in a place of its own; strides along axes of size 1 may be any."""
    reach = 1
    for stride, size in sorted((stride, size) for size, stride in zip(shape, strides) if size != 1):
        if stride != reach:
            return 0 in shape
        reach *= size
    return True


def place(tensor: Tensor, strides: Sequence[int]) -> Tensor:
    """The same entries in new memory, with other strides.

    Args:
        tensor: Of any strides.
        strides: One for each axis, dense.

    Raises:
        ValueError: If they are none.
    """
    whole = all(type(stride) is int and 0 <= stride < 1 << 63 for stride in strides)
    if len(strides) != tensor.dim() or not whole or not is_dense(tensor.shape, strides):
        raise ValueError(f"{list(strides)} are no dense strides for the shape {list(tensor.shape)}")
    # By stride, the largest first; as words where there are such, which torch can copy whatever the dtype.
    words = tensor.view(words_dtype(tensor.dtype)) if tensor.itemsize <= 8 else tensor
    order = sorted(range(tensor.dim()), key=lambda axis: (-strides[axis], tensor.shape[axis]))
    laid = words.permute(order).clone(memory_format=torch.contiguous_format)
    return laid.as_strided(tuple(tensor.shape), tuple(strides)).view(tensor.dtype)
