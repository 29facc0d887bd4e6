"""Booleans as bits: masks take an eighth of a byte an entry where they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor


def pack_bits(mask: Tensor) -> Tensor:
    """Eight booleans a byte, the first in the lowest bit: a 1-D uint8 tensor on the CPU."""
    flat = mask.detach().cpu().flatten().bool().numpy()
    return torch.from_numpy(np.packbits(flat, bitorder="little"))


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `pack_bits`: a boolean tensor on the CPU.

    Raises:
        ValueError: if the number of bytes does not fit the shape.
    """
    count = prod(shape)
    if len(packed) != -(-count // 8):
        raise ValueError(f"{len(packed)} bytes cannot hold the {count} bits of a mask of shape {tuple(shape)}")
    bits = np.unpackbits(packed.cpu().numpy(), count=count, bitorder="little")
    return torch.from_numpy(bits.view(np.bool_)).reshape(tuple(shape))
