"""What stands inside a replaced layer: between two factors, at the end of each parallel branch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

from torch import nn
from torch.nn.modules.conv import _ConvNd

Inner = Literal["linear", "norm", "relu", "norm-relu"]

_NORMS = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}


def check_inner(inner: str) -> None:
    """Refuse what is none of the possible ones.

    Raises:
        ValueError: naming these.
    """
    if inner not in get_args(Inner):
        raise ValueError(f"inner={inner!r} is none of {', '.join(get_args(Inner))}")


def inner_modules(inner: Inner, layer: nn.Module, norm: nn.Module | None = None) -> list[nn.Module]:
    """New modules to come after a layer.

    Args:
        inner: `"linear"`, nothing; `"norm"`, a batch norm after a convolution and a layer norm after a Linear; `"relu"`
            and `"norm-relu"`, with a ReLU at the end.
        layer: whose output they take.
        norm: that is there already, instead of a new one and in any case.
    """
    check_inner(inner)
    parts = [norm] if norm is not None else [_norm(layer)] if inner.startswith("norm") else []
    return [*parts, nn.ReLU()] if inner.endswith("relu") else parts


def divides_scale(modules: Iterable[nn.Module]) -> bool:
    """Whether there is a norm among such modules, so that the scale of what comes before them is divided out."""
    return any(not isinstance(module, nn.ReLU) for module in modules)


def _norm(layer: nn.Module) -> nn.Module:
    weight = layer._parameters["weight"]
    assert weight is not None
    kind: Any = next((norm for of, norm in _NORMS.items() if isinstance(layer, of)), nn.LayerNorm)
    # A Conv1D of the transformers library holds its outputs last.
    outputs = len(weight) if isinstance(layer, nn.Linear | _ConvNd) else weight.shape[1]
    made: nn.Module = kind(outputs, device=weight.device, dtype=weight.dtype)
    return made
