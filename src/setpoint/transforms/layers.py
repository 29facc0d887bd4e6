"""Linear layers and convolutions as one kind: a fan-in, a fan-out, and what of a convolution is not its channels."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd


@dataclass(frozen=True)
class Portion:
    """What a weight has to do with the output of the layer that it is a part of.

    Attributes:
        share: how much of the output it makes.
        entries: how many inputs each of its outputs adds up, those that a mask leaves.
        place: `"alone"`, between the layer's input and output; of two weights in a row `"inner"` the first, which makes
            what the other reads, and `"outer"` the second.
        square: mean of the squares of its inputs, where those of the layer have 1.
    """

    share: float
    entries: float
    place: Literal["alone", "inner", "outer"] = "alone"
    square: float = 1.0


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_replaceable(module: nn.Module) -> bool:
    """Whether a module is a Linear, a convolution, or the transposed Linear of the transformers library.

    Subclasses may do more than these, and are left.
    """
    return type(module) in (nn.Linear, *_CONVOLUTIONS) or type(module).__name__ == "Conv1D"


def fans(layer: nn.Module) -> tuple[int, int, int]:
    """Fan-in (with kernel positions) and fan-out of one group of channels, and the number of groups."""
    found: Any = layer
    if isinstance(layer, _ConvNd):
        inputs, outputs = found.in_channels // found.groups, found.out_channels // found.groups
        return inputs * prod(found.kernel_size), outputs, found.groups
    if isinstance(layer, nn.Linear):
        return found.in_features, found.out_features, 1
    return found.weight.shape[0], found.weight.shape[1], 1


def resized(layer: nn.Module, outputs: int, *, bias: bool = False) -> nn.Module:
    """A layer of the same kind, dtype and device that reads what the given one does.

    Args:
        layer: which is replaceable.
        outputs: of one group.
        bias: whether it has one.
    """
    weight, found = _weight(layer), layer
    where: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    if not isinstance(found, _ConvNd):
        return nn.Linear(fans(layer)[0], outputs, bias, **where)
    kind: Any = type(found)
    shape = (found.in_channels, outputs * found.groups, found.kernel_size, found.stride, found.padding, found.dilation)
    return _like(layer, kind(*shape, found.groups, bias, found.padding_mode, **where))


@torch.no_grad()
def pointwise(layer: nn.Module, inputs: int, *, bias: bool) -> nn.Module:
    """A layer that maps to what the given one makes, position by position.

    Args:
        layer: which is replaceable.
        inputs: of one group.
        bias: whether it has a bias if the layer has one; one that is the same all over begins so.
    """
    where: dict[str, Any] = {"device": _weight(layer).device, "dtype": _weight(layer).dtype}
    old: Tensor | None = layer._parameters.get("bias")
    has = bias and old is not None
    if isinstance(layer, _ConvNd):
        kind: Any = type(layer)
        made = _like(layer, kind(inputs * layer.groups, layer.out_channels, 1, groups=layer.groups, bias=has, **where))
    else:
        made = nn.Linear(inputs, fans(layer)[1], bias=has, **where)
    if has and old is not None and not old.is_meta and bool((old == old[0]).all()):
        nn.init.constant_(made._parameters["bias"], float(old[0]))  # type: ignore[arg-type]
    return made


@torch.no_grad()
def folded(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer of the given one's kind and sizes with this weight and bias, in its dtype.

    Args:
        layer: which is replaceable, or was the first of two that multiplied to one.
        weight: (outputs, inputs of a group, kernel...).
        bias: (outputs,).
    """
    made = resized(layer, len(weight) // fans(layer)[2], bias=bias is not None)
    _weight(made).copy_(weight)
    if bias is not None:
        made._parameters["bias"].copy_(bias)  # type: ignore[union-attr]
    return made.train(layer.training)


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """In float64, the weight with the outputs first."""
    weight = _weight(layer).detach().double()
    bias = layer._parameters.get("bias")
    transposed = not isinstance(layer, nn.Linear | _ConvNd)
    return weight.T if transposed else weight, None if bias is None else bias.detach().double()


def after_norm(weight: Tensor, bias: Tensor | None, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """A layer's weight and bias with a batch norm behind it, as it is in evaluation mode, folded in.

    Raises:
        ValueError: if the norm keeps no statistics.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics depends on the batch: it cannot be folded")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        scale, shift = scale * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
    bias = shift if bias is None else bias * scale + shift
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias


def _weight(layer: nn.Module) -> Tensor:
    weight = layer._parameters["weight"]
    assert weight is not None
    return weight


def _like(layer: nn.Module, made: nn.Module) -> nn.Module:
    """Lay a convolution's channels last in memory where the given one's lie so."""
    weight = _weight(layer)
    last = weight.ndim == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
    return made.to(memory_format=torch.channels_last) if last else made  # type: ignore[call-overload]
