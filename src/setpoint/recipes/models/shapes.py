"""What the models share: input shapes, widths and initial weights."""

from typing import TypeAlias

import torch
from torch import Tensor, nn

Shape: TypeAlias = tuple[int, int, int]


def scale_width(channels: int, width: float) -> int:
    """Return ``channels`` multiplied by ``width``, rounded, and at least 1."""
    return max(1, round(channels * width))


def example_input(shape: tuple[int, ...], batch: int = 1, device: torch.device | str = "cpu") -> Tensor:
    """Return inputs as the models take them: images of shape (N, C, H, W), or tokens of shape (N, T), all zeros."""
    return torch.zeros(batch, *shape, dtype=torch.int64 if len(shape) == 1 else torch.float32, device=device)


def require_size(model: str, shape: Shape, smallest: int) -> None:
    """Refuse inputs that would be pooled away.

    Raises:
        ValueError: If height or width is below ``smallest``.
    """
    _, height, wide = shape
    if min(height, wide) < smallest:
        raise ValueError(
            f"{model} was asked to take inputs of {height}x{wide}; "
            f"after its pooling nothing would be left of them: at least {smallest}x{smallest} is possible"
        )


def initialise(model: nn.Module) -> None:
    """Draw convolution weights as He et al. (2015) do for ReLU networks, from torch's global generator."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
