"""Sparse doped: a sparse layer, and beside it a dense product of low rank."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from setpoint.transforms.factorized import multiplied
from setpoint.transforms.initialise import fresh_copy
from setpoint.transforms.layers import Portion, fans, folded, pointwise, resized, weight_and_bias


class Doped(nn.Module):
    """`layer(x) + v(u(x))`: the layer is to be sparse, u and v stay dense.

    Source: Thangarasa et al., Sparse-IFT, ICML 2024. (The code released with the paper masks u and v as well, so that
    its networks cost less than the dense ones.)

    Args:
        layer: to be made sparse; Linear or convolution.
        rank: size between u and v, of one group of channels.
    """

    def __init__(self, layer: nn.Module, rank: int) -> None:
        super().__init__()
        self.layer = fresh_copy(layer)
        self.u = resized(layer, rank)
        self.v = pointwise(layer, rank, bias=False)
        self.train(layer.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map what the layer maps to what it makes."""
        result: Tensor = self.layer(inputs) + self.v(self.u(inputs))
        return result

    @property
    def sparse(self) -> list[str]:
        """Names of the weights that are to be sparse."""
        return ["layer.weight"]

    def portions(self, densities: Mapping[str, float]) -> dict[str, Portion]:
        """The product makes the part of the output that the mask takes of the layer."""
        fan_in, rank, stays = fans(self.layer)[0], fans(self.v)[0], densities.get("layer.weight", 1.0)
        return {
            "layer.weight": Portion(stays, fan_in * stays),
            "u.weight": Portion(1.0, fan_in, "inner"),
            "v.weight": Portion(1.0 - stays, rank, "outer"),
        }

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """One dense layer that computes what this one does: the zeros of the sparse one are filled."""
        weight, bias = weight_and_bias(self.layer)
        product, _ = multiplied(self.v, weight_and_bias(self.u)[0], None, self.u)
        return folded(self.layer, weight + product, bias)
