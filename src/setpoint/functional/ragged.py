"""Arguments that are one tensor or a ragged sequence of them, with numbers or tensors beside each: read and checked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

PerTensor = Tensor | float | Sequence[Tensor | float] | None


def as_list(tensors: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The tensors of a ragged sequence, or the only one."""
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def per_tensor(
    values: PerTensor, magnitudes: Tensor | Sequence[Tensor], name: str, *, positive: bool = False
) -> list[Tensor]:
    """One number or one value a group for each tensor of magnitudes, checked, in float64 on its device."""
    tensors = as_list(magnitudes)
    if isinstance(magnitudes, Tensor):
        values = [1.0 if values is None else values]  # type: ignore[list-item]
    each = [1.0] * len(tensors) if values is None else list(values)  # type: ignore[arg-type]
    if len(each) != len(tensors):
        raise ValueError(f"{len(each)} {name} were given for {len(tensors)} tensors of magnitudes")
    return [_spread(v, m, name, i, positive) for i, (v, m) in enumerate(zip(each, tensors))]


def _spread(value: Tensor | float, like: Tensor, name: str, position: int, positive: bool) -> Tensor:
    spread = torch.as_tensor(value, dtype=torch.float64, device=like.device).detach()
    if spread.ndim:
        try:
            spread = spread.expand_as(like)
        except RuntimeError:
            shapes = f"{tuple(spread.shape)}, its magnitudes {tuple(like.shape)}"
            raise ValueError(f"the {name} of tensor {position} have shape {shapes}") from None
    if spread.numel():
        low, high = (float(x) for x in torch.aminmax(spread))
        if not (low >= 0.0 and high < math.inf) or (positive and low == 0.0):
            kind = "positive" if positive else "not negative"
            raise ValueError(
                f"the {name} of tensor {position} must be finite and {kind}, but reach from {low} to {high}"
            )
    return spread


def check_magnitudes(magnitudes: Tensor, position: int) -> None:
    """Refuse magnitudes that are negative, NaN, infinite or no floating-point numbers."""
    if not magnitudes.is_floating_point():
        raise ValueError(f"magnitudes {position} have dtype {magnitudes.dtype}: a floating dtype is needed")
    if magnitudes.numel():
        low, high = (float(x) for x in torch.aminmax(magnitudes.detach()))
        if not (low >= 0.0 and high < math.inf):
            raise ValueError(f"magnitudes {position} must be finite and not negative, but reach from {low} to {high}")
