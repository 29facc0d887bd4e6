"""Sparse parallel: several copies of a layer, each with its own norm where one follows, added up."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from setpoint.transforms.initialise import fresh_copy
from setpoint.transforms.inner import Inner, divides_scale, inner_modules
from setpoint.transforms.layers import Portion, after_norm, fans, folded, weight_and_bias


class Parallel(nn.Module):
    """`sum_i norm_i(layer_i(x))`, or `sum_i layer_i(x)` where no batch norm follows the layer.

    Without an activation in the branches, as in the paper's CIFAR networks, the sum is one layer in evaluation mode,
    which computes nothing that the dense one could not; with one, as in its ImageNet networks, it computes more.
    Source: Thangarasa et al., Sparse-IFT, ICML 2024.

    Args:
        layer: to be copied; Linear or convolution.
        branches: how many copies.
        norm: the batch norm that follows it, which moves into the branches.
        inner: what comes at the end of each branch; a norm that moves in is there in any case.
    """

    def __init__(self, layer: nn.Module, branches: int, norm: nn.Module | None = None, inner: Inner = "linear") -> None:
        super().__init__()
        parts = [layer, *inner_modules(inner, layer, norm)]
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
        """Every branch makes the same part of the output; a norm at its end divides the scale out."""
        layer, *inner = self.branches[0].children()
        if divides_scale(inner):
            return {}
        fan_in, share = fans(layer)[0], 1.0 / self._square(len(self.branches), bool(inner))
        return {name: Portion(share, fan_in * densities.get(name, 1.0)) for name in self.sparse}

    @staticmethod
    def _square(branches: int, relu: bool) -> float:
        """The mean square of the sum, of branches that are normal with variance 1 before a ReLU that they may have."""
        return branches / 2 + branches * (branches - 1) / (2 * math.pi) if relu else float(branches)

    @torch.no_grad()
    def fold(self) -> nn.Module | None:
        """One layer that computes what this one does in evaluation mode; it keeps what any branch keeps.

        None if it is not linear.
        """
        if any(not isinstance(module, _BatchNorm) for module in list(self.branches[0].children())[1:]):
            return None
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
