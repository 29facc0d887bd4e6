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
    spread = _beside(value, like, name, position)
    number = as_number(value)
    if number is not None:
        _check_range(number, number, name, position, positive)
    elif spread.numel():
        low, high = torch.stack(torch.aminmax(spread)).tolist()
        _check_range(low, high, name, position, positive)
    return spread


def _beside(value: Tensor | float, like: Tensor, name: str, position: int) -> Tensor:
    number = as_number(value)
    if number is not None:
        # Filled in there: a copy would make the program wait for the device.
        return torch.full((), number, dtype=torch.float64, device=like.device)
    spread = torch.as_tensor(value, dtype=torch.float64, device=like.device).detach()
    if spread.ndim == 0:
        return spread
    try:
        return spread.expand_as(like)
    except RuntimeError:
        shapes = f"{tuple(spread.shape)}, its magnitudes {tuple(like.shape)}"
        raise ValueError(f"the {name} of tensor {position} have shape {shapes}") from None


def as_number(value: Tensor | float) -> float | None:
    """A single number that the CPU knows; None for anything else."""
    if isinstance(value, Tensor):
        return float(value) if value.ndim == 0 and value.device.type == "cpu" else None
    return float(value) if isinstance(value, float | int) else None


def common_number(values: PerTensor, tensors: Sequence[object]) -> float | None:
    """The number that stands beside every tensor, if the CPU knows it; 1 where none is given."""
    if values is None:
        return 1.0
    each = [values] if isinstance(values, Tensor | float | int) else list(values)
    numbers = {as_number(value) for value in each}
    return numbers.pop() if len(numbers) == 1 and len(each) == len(tensors) else None


def beside_row(values: PerTensor, tensors: Sequence[Tensor]) -> Tensor | float | None:
    """What stands beside the entries of all tensors one after another, given what stands beside each; not checked.

    Raises:
        ValueError: if they do not match.
    """
    number = common_number(values, tensors)
    if number is not None:
        return number
    each = [values] if isinstance(values, Tensor | float | int) else list(values or ())
    pairs = zip(each, tensors, strict=True)
    return torch.cat([_beside(v, t, "values", i).expand_as(t).flatten() for i, (v, t) in enumerate(pairs)])


def _check_range(low: float, high: float, name: str, position: int, positive: bool) -> None:
    if not (low >= 0.0 and high < math.inf) or (positive and low == 0.0):
        kind = "positive" if positive else "not negative"
        raise ValueError(f"the {name} of tensor {position} must be finite and {kind}, but reach from {low} to {high}")


def check_magnitudes(magnitudes: Tensor, position: int) -> None:
    """Refuse magnitudes that are negative, NaN, infinite or no floating-point numbers."""
    if not magnitudes.is_floating_point():
        raise ValueError(f"magnitudes {position} have dtype {magnitudes.dtype}: a floating dtype is needed")
    if magnitudes.numel():
        low, high = torch.stack(torch.aminmax(magnitudes.detach())).tolist()
        if not (low >= 0.0 and high < math.inf):
            raise ValueError(f"magnitudes {position} must be finite and not negative, but reach from {low} to {high}")
