"""Sparse factorized: two sparse layers in place of one, with a larger size in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from setpoint.transforms.layers import Portion, after_norm, fans, folded, pointwise, resized, weight_and_bias

Middle = Literal["linear", "norm", "norm-relu"]

_NORMS = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}


class Factorized(nn.Module):
    """`v(middle(u(x)))`: u reads what the layer reads, with its kernel and stride; v is 1x1, with its bias.

    Source: Thangarasa et al., Sparse-IFT, ICML 2024.

    Args:
        layer: to be replaced; Linear or convolution.
        rank: size between u and v, of one group of channels.
        middle: `"linear"`, nothing, so that both fold into one layer; `"norm"`, a batch norm (after a Linear a layer
            norm); `"norm-relu"`, a norm and a ReLU.
    """

    def __init__(self, layer: nn.Module, rank: int, middle: Middle = "linear") -> None:
        super().__init__()
        if middle not in get_args(Middle):
            raise ValueError(f"middle={middle!r} is none of {', '.join(get_args(Middle))}")
        self.u = resized(layer, rank)
        parts: list[nn.Module] = [] if middle == "linear" else [_norm(self.u)]
        parts += [nn.ReLU()] if middle == "norm-relu" else []
        self.middle = nn.Sequential(*parts) if parts else nn.Identity()
        self.v = pointwise(layer, rank, bias=True)
        self.train(layer.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map what the layer maps to what it makes."""
        result: Tensor = self.v(self.middle(self.u(inputs)))
        return result

    @property
    def sparse(self) -> list[str]:
        """Names of the weights that are to be sparse."""
        return ["u.weight", "v.weight"]

    def portions(self, densities: Mapping[str, float]) -> dict[str, Portion]:
        """v makes the output of what u hands on."""
        entries = {name: fans(self.get_submodule(name[0]))[0] * densities.get(name, 1.0) for name in self.sparse}
        return {name: Portion(1.0, n, inner=name == "u.weight") for name, n in entries.items()}

    @torch.no_grad()
    def fold(self) -> nn.Module | None:
        """One dense layer of the old sizes that computes what both do in evaluation mode; None for `"norm-relu"`."""
        norms = list(self.middle.children())
        if not all(isinstance(norm, _BatchNorm) for norm in norms):
            return None
        weight, bias = weight_and_bias(self.u)
        for norm in norms:
            assert isinstance(norm, _BatchNorm)
            weight, bias = after_norm(weight, bias, norm)
        return folded(self.u, *multiplied(self.v, weight, bias, self.u))


def multiplied(v: nn.Module, weight: Tensor, bias: Tensor | None, u: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight and bias of a layer followed by a pointwise one, group by group.

    Args:
        v: the pointwise layer.
        weight: of the layer before it, (outputs, inputs of a group, kernel...), float64.
        bias: of the layer before it.
        u: that layer.
    """
    outer, last = weight_and_bias(v)
    groups = u.groups if isinstance(u, _ConvNd) else 1
    blocks = outer.reshape(groups, len(outer) // groups, -1)
    product = blocks @ weight.reshape(groups, len(weight) // groups, -1)
    if bias is not None:
        through = (blocks @ bias.reshape(groups, -1, 1)).reshape(-1)
        last = through if last is None else last + through
    return product.reshape(len(outer), *weight.shape[1:]), last


def _norm(u: nn.Module) -> nn.Module:
    weight = u._parameters["weight"]
    assert weight is not None
    kind: Any = next((norm for layer, norm in _NORMS.items() if isinstance(u, layer)), nn.LayerNorm)
    made: nn.Module = kind(len(weight), device=weight.device, dtype=weight.dtype)
    return made
