"""Sparse parallel: several copies of a layer, each with its own norm where one follows, added up."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from setpoint.transforms.initialise import fresh_copy
from setpoint.transforms.layers import Portion, after_norm, fans, folded, weight_and_bias


class Parallel(nn.Module):
    """`sum_i norm_i(layer_i(x))`, or `sum_i layer_i(x)` where no batch norm follows the layer.

    There is no activation in a branch, so that in evaluation mode the sum is one layer. Source: Thangarasa et al.,
    Sparse-IFT, ICML 2024, the form of their CIFAR networks.

    Args:
        layer: to be copied; Linear or convolution.
        branches: how many copies.
        norm: the batch norm that follows it, which moves into the branches.
    """

    def __init__(self, layer: nn.Module, branches: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        parts = [layer] if norm is None else [layer, norm]
        self.branches = nn.ModuleList(nn.Sequential(*(fresh_copy(p) for p in parts)) for _ in range(branches))
        self.train(layer.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map what the layer maps to what it, or its norm, makes."""
        result: Tensor = self.branches[0](inputs)
        for branch in self.branches[1:]:
            result = result + branch(inputs)
        return result

    @property
    def sparse(self) -> list[str]:
        """Names of the weights that are to be sparse."""
        return [f"branches.{i}.0.weight" for i in range(len(self.branches))]

    def portions(self, densities: Mapping[str, float]) -> dict[str, Portion]:
        """Every branch makes the same part of the output."""
        fan_in, share = fans(next(self.branches[0].children()))[0], 1.0 / len(self.branches)
        return {name: Portion(share, fan_in * densities.get(name, 1.0)) for name in self.sparse}

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """One layer that computes what this one does in evaluation mode; it keeps what any branch keeps."""
        weights, biases = [], []
        for branch in self.branches:
            layer, *norms = branch.children()
            weight, bias = weight_and_bias(layer)
            for norm in norms:
                assert isinstance(norm, _BatchNorm)
                weight, bias = after_norm(weight, bias, norm)
            weights.append(weight)
            biases += [] if bias is None else [bias]
        layer = next(self.branches[0].children())
        return folded(layer, torch.stack(weights).sum(0), torch.stack(biases).sum(0) if biases else None)
