"""Copies of a model to try things on, without its weights being copied."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def sharing(model: nn.Module) -> nn.Module:
    """A copy of a model with the same parameters; buffers, to which norms write, are copied."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def clear(model: nn.Module, parameter: Tensor) -> None:
    """Have zeros for a parameter, wherever a model has it."""
    zeros = nn.Parameter(torch.zeros((), dtype=parameter.dtype, device=parameter.device).expand(parameter.shape))
    for module in model.modules():
        for name in [name for name, held in module._parameters.items() if held is parameter]:
            setattr(module, name, zeros)  # recurrent layers keep a list of their own
