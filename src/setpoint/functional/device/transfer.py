"""Little work goes to the CPU and back in one copy each way: there its many steps wait for nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from setpoint.functional.device import in_a_row, on_one, parted

# Up to so many entries a copy takes no longer than the steps that it saves.
FEW = 1 << 20


def few_on_one(tensors: Sequence[Tensor]) -> bool:
    """Whether the tensors are together on a GPU, and few."""
    return on_one(tensors) and sum(t.numel() for t in tensors) <= FEW


def on_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors that are on one device."""
    return parted(in_a_row([t.detach() for t in tensors]).cpu(), tensors)


def back(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The way back."""
    return parted(in_a_row(tensors).to(device, non_blocking=True), tensors)
