"""First weights that make a sparse layer begin as loud as the dense one did.

A mask takes part of what a layer adds up, and layers one behind another multiply their deviations. So the weights that
the modules drew are scaled: with inputs of variance 1, every layer begins with the variance `I sigma^2` that the dense
one begins with, of its fan-in I and the deviation sigma that its model draws it with. A layer whose output a batch norm
takes is left as it was drawn, since the norm divides its scale out.

The paper's code draws as for dense layers. Scaling by the entries that are left is due to U. Evci, Y. Ioannou, C.
Keskin, Y. Dauphin, "Gradient flow in sparse neural networks and how lottery tickets win", AAAI 2022; the deviations of
sparse layers that keep a training recipe's meaning, to N. Dey, S. Bergsma, J. Hestness, "Sparse maximal update
parameterization", NeurIPS 2024.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from setpoint.transforms.initialise import draw_anew, how_drawn
from setpoint.transforms.layers import fans, is_replaceable
from setpoint.transforms.result import SparseLayer


@runtime_checkable
class Composed(Protocol):
    """A module that stands for a layer."""

    def deviations(self, gain: float, densities: Mapping[str, float]) -> dict[str, float]:
        """What deviations its weights begin with, by their names in it.

        Args:
            gain: the variance of its output for inputs of variance 1.
            densities: by the names of its weights, what part of each stays.
        """
        ...


@torch.no_grad()
def keep_variance(
    made: nn.Module, dense: nn.Module, layers: Sequence[SparseLayer], followed: Mapping[str, str]
) -> None:
    """Scale the first weights of sparse layers, in place.

    Args:
        made: the larger model, freshly drawn.
        dense: the model that it was made from, whatever its weights are by now.
        layers: of the larger model that are to be sparse.
        followed: paths of the dense model's layers that a batch norm follows.
    """
    if any(p.is_meta for p in dense.parameters()):
        return
    drawn = _first_deviations(dense)
    densities = {layer.name: layer.kept / layer.entries for layer in layers}
    composed = tuple(f"{path}." for path, module in made.named_modules() if isinstance(module, Composed))
    for path, module in made.named_modules():
        if path in followed or path.startswith(composed):
            continue
        name = f"{path}.weight".removeprefix(".")
        own = {n.removeprefix(f"{path}."): d for n, d in densities.items() if n.startswith(f"{path}.")}
        if isinstance(module, Composed):
            gain = _fan_in(dense.get_submodule(path)) * drawn[name] ** 2
            wanted = module.deviations(gain, own)
        elif name in densities and (isinstance(module, _ConvNd) or is_replaceable(module)):
            gain = _fan_in(dense.get_submodule(path)) * drawn[name] ** 2
            wanted = {"weight": math.sqrt(gain / (_fan_in(module) * densities[name]))}
        else:
            continue
        for key, deviation in wanted.items():
            _scale(module.get_parameter(key), deviation)


def _first_deviations(dense: nn.Module) -> dict[str, float]:
    """The deviations that a model's parameters are drawn with; torch's generators stay as they are."""
    with torch.random.fork_rng([d for d in {p.device for p in dense.parameters()} if d.type == "cuda"]):
        fresh, drawn = copy.deepcopy(dense), how_drawn(dense)
        draw_anew(fresh, [name for name, _ in fresh.named_parameters() if name in drawn], drawn)
    first = how_drawn(fresh)
    return {name: first[name].deviation for name, _ in fresh.named_parameters(remove_duplicate=False) if name in first}


def _fan_in(layer: nn.Module) -> int:
    return fans(layer)[0]


def _scale(weight: Tensor, deviation: float) -> None:
    before = float(weight.double().std(correction=0)) if weight.numel() > 1 else 0.0
    # Weights that are one value all over were put so on purpose.
    if before > 0.0 and deviation > 0.0:
        weight.mul_(deviation / before)
