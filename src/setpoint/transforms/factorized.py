"""Sparse factorized: two sparse layers in place of one, with a larger size in between."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from setpoint.transforms.inner import Inner, divides_scale, inner_modules
from setpoint.transforms.layers import Portion, after_norm, fans, folded, pointwise, resized, weight_and_bias


class Factorized(nn.Module):
    """`v(inner(u(x)))`: u reads what the layer reads, with its kernel and stride; v is 1x1, with its bias.

    Source: Thangarasa et al., Sparse-IFT, ICML 2024.

    Args:
        layer: to be replaced; Linear or convolution.
        rank: size between u and v, of one group of channels.
        inner: what comes between u and v; with `"linear"` and with a batch norm, both fold into one layer.
    """

    def __init__(self, layer: nn.Module, rank: int, inner: Inner = "linear") -> None:
        super().__init__()
        self.u = resized(layer, rank)
        self.inner = nn.Sequential(*inner_modules(inner, self.u))
        self.v = pointwise(layer, rank, bias=True)
        self.train(layer.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map what the layer maps to what it makes."""
        result: Tensor = self.v(self.inner(self.u(inputs)))
        return result

    @property
    def sparse(self) -> list[str]:
        """Names of the weights that are to be sparse."""
        return ["u.weight", "v.weight"]

    def portions(self, densities: Mapping[str, float]) -> dict[str, Portion]:
        """v makes the output of what u hands on; a norm divides the scale of u out, a ReLU lets half pass."""
        entries = {name: fans(self.get_submodule(name[0]))[0] * densities.get(name, 1.0) for name in self.sparse}
        square = 0.5 if any(isinstance(module, nn.ReLU) for module in self.inner) else 1.0
        found = {"v.weight": Portion(1.0, entries["v.weight"], "outer", square)}
        return found if divides_scale(self.inner) else {**found, "u.weight": Portion(1.0, entries["u.weight"], "inner")}

    @torch.no_grad()
    def fold(self) -> nn.Module | None:
        """One dense layer of the old sizes that computes what both do in evaluation mode; None if it is not linear."""
        norms = list(self.inner.children())
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
