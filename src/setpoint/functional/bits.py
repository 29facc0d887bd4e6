"""Booleans as bits: masks take an eighth of a byte an entry where they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F


def pack_bits(mask: Tensor) -> Tensor:
    """Eight booleans a byte, the first in the lowest bit: a 1-D uint8 tensor on the CPU."""
    flat = mask.detach().cpu().flatten().to(torch.uint8)
    octets = F.pad(flat, (0, -len(flat) % 8)).reshape(-1, 8)
    return (octets << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `pack_bits`.

    Raises:
        ValueError: if the number of bytes does not fit the shape.
    """
    count = prod(shape)
    if len(packed) != -(-count // 8):
        raise ValueError(f"{len(packed)} bytes cannot hold the {count} bits of a mask of shape {tuple(shape)}")
    bits = (packed.cpu().unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten()[:count].reshape(tuple(shape)).bool()
