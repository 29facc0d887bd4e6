"""Little work goes to the CPU and back in one copy each way: there its many steps wait for nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from setpoint.functional.device import in_a_row, on_one

# Up to so many entries a copy takes no longer than the steps that it saves.
FEW = 1 << 20


def few_on_one(tensors: Sequence[Tensor]) -> bool:
    """Whether the tensors are together on a GPU, and few."""
    return on_one(tensors) and sum(t.numel() for t in tensors) <= FEW


def on_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors that are on one device."""
    return _parted(in_a_row([t.detach() for t in tensors]).cpu(), tensors)


def back(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The way back."""
    return _parted(in_a_row(tensors).to(device, non_blocking=True), tensors)


def _parted(row: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    return [part.view(t.shape) for part, t in zip(torch.split(row, [t.numel() for t in like]), like)]
