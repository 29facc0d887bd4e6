"""Where the tensors are on a GPU: few operations over all of them in a row, and no waiting for numbers.

Every number that the program reads from a GPU makes it wait until all the work it has given out is done. Here the
search for a multiplier or a cut runs on the GPU as well, and the program reads once, at the end. What the operations
here do not cover, such as ties, is left to the eager path, which works on every device and is their reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Types of devices on which waiting costs more than a few operations.
TYPES = {"cuda"}


def on_one(tensors: Sequence[Tensor]) -> bool:
    """Whether all tensors are floating-point numbers on one device that is worth the care."""
    return (
        bool(tensors)
        and tensors[0].device.type in TYPES
        and all(t.device == tensors[0].device and t.layout is torch.strided and t.is_floating_point() for t in tensors)
    )


def in_a_row(tensors: Sequence[Tensor]) -> Tensor:
    """All entries, one after another."""
    return torch.cat([t.flatten() for t in tensors])


def parted(row: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse: views of a row, shaped as the tensors that it was made of."""
    return [part.view(t.shape) for part, t in zip(torch.split(row, [t.numel() for t in like]), like)]
