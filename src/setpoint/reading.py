"""Numbers between the program and a GPU: each that is read makes the program wait, and each tensor that is copied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from setpoint.functional.entries import count_nonzero


def read(numbers: Sequence[Tensor]) -> list[float]:
    """The numbers of some tensors of one entry each, at once."""
    if not numbers:
        return []
    there = numbers[0].device
    values: list[float] = torch.stack([n.detach().to(there, torch.float64) for n in numbers]).tolist()
    return values


def count(masks: Iterable[Tensor]) -> int:
    """How many entries are not zero, of all tensors together."""
    return int(sum(read([count_nonzero(mask) for mask in masks])))


def beside(values: Tensor, device: torch.device) -> Tensor:
    """Values to reckon with on a device: there, but for a single number, which goes with tensors of all devices."""
    return values if values.ndim == 0 else values.to(device)


def placed(values: Tensor, device: torch.device) -> Tensor:
    """The same on a device; a single number that the CPU knows is filled in there."""
    if values.ndim == 0 and values.device.type == "cpu" and device.type != "cpu":
        return torch.full((), values.item(), dtype=values.dtype, device=device)
    return values.to(device)
