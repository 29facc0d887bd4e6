"""The entries of a tensor as integers of the same bits, whatever its dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def to_words(tensor: Tensor) -> Array:
    """The entries of a tensor as integers of the same bits.

    Args:
        tensor: Of any dtype, shape, stride and device.

    Returns:
        An array of the tensor's shape, which may share the tensor's memory. Entries of 16 bytes (complex128) become
        two words each, along one more axis.
    """
    flat = flatten(tensor.detach().resolve_conj().resolve_neg().cpu())
    words = flat.view(words_dtype(flat.dtype))
    return words.numpy().reshape(words_shape(tensor.dtype, tensor.shape))


def from_words(words: Array, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """The inverse of `to_words`: a CPU tensor that shares the memory of ``words``."""
    return flatten(torch.from_numpy(np.ascontiguousarray(words))).view(dtype).reshape(tuple(shape))


def flatten(tensor: Tensor) -> Tensor:
    """The entries in order, at stride 1 even where there is only one, as views of another width need it."""
    return tensor.contiguous().as_strided((tensor.numel(),), (1,))


def words_dtype(dtype: torch.dtype) -> torch.dtype:
    """The integers that `to_words` gives for a dtype."""
    return _WORDS[min(dtype.itemsize, 8)]


def words_shape(dtype: torch.dtype, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of `to_words` for a tensor of this dtype and shape."""
    return (*shape, 2) if dtype.itemsize > 8 else tuple(shape)
