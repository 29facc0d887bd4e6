"""First weights and learning rates with which a sparse layer begins, and goes on, as the dense one would.

A mask takes part of what a layer adds up, and layers one behind another multiply their deviations. So

- the weights that the modules drew are scaled: with inputs of variance 1, every layer begins with the variance
  `I sigma^2` that the dense one begins with, of its fan-in I and the deviation sigma that its model draws it with;
- a step of Adam, which moves every entry equally far, moves an output by as much as there are entries to add up. To
  move it as far as the dense layer's, the learning rate is multiplied by I and divided by the entries that are left.
  Of two layers in a row each moves the output through the other, by as much as the other's weights have grown: no
  factor holds for long, and both keep the dense rate. (Scaled as if they were alone, those of a GPT learned worse.)

A layer whose output a batch norm takes is left as it was drawn, since the norm divides its scale out.

The paper's code draws and steps as for dense layers. Sources: U. Evci, Y. Ioannou, C. Keskin, Y. Dauphin, "Gradient
flow in sparse neural networks and how lottery tickets win", AAAI 2022, for weights scaled by the entries that are left;
N. Dey, S. Bergsma, J. Hestness, "Sparse maximal update parameterization", NeurIPS 2024, for both over width and
sparsity.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from setpoint.transforms.initialise import draw_anew, how_drawn
from setpoint.transforms.layers import Portion, fans, is_replaceable
from setpoint.transforms.result import SparseLayer


@runtime_checkable
class Composed(Protocol):
    """A module that stands for a layer."""

    def portions(self, densities: Mapping[str, float]) -> dict[str, Portion]:
        """Of its weights, by their names in it.

        Args:
            densities: by the names of weights, what part of each stays; all of others.
        """
        ...


@dataclass(frozen=True)
class _Found:
    """A weight of the larger model, and the weight of the dense one that it stands for with others."""

    name: str
    dense: str
    fan_in: int
    portion: Portion


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
    for found in _found(made, dense, layers, followed):
        gain = 1.0 if found.portion.place == "inner" else found.portion.share * found.fan_in * drawn[found.dense] ** 2
        _scale(made.get_parameter(found.name), math.sqrt(gain / (found.portion.entries * found.portion.square)))


def rate_factors(
    made: nn.Module, dense: nn.Module, layers: Sequence[SparseLayer], followed: Mapping[str, str]
) -> dict[str, float]:
    """By the names of weights, what Adam's learning rate is to be multiplied by; 1 for all others.

    Args:
        made, dense, layers, followed: as in `keep_variance`.
    """
    found = _found(made, dense, layers, followed)
    return {f.name: f.portion.share * f.fan_in / f.portion.entries for f in found if f.portion.place == "alone"}


def _found(
    made: nn.Module, dense: nn.Module, layers: Sequence[SparseLayer], followed: Mapping[str, str]
) -> Iterator[_Found]:
    densities = {layer.name: layer.kept / layer.entries for layer in layers}
    composed = tuple(f"{path}." for path, module in made.named_modules() if isinstance(module, Composed))
    for path, module in made.named_modules():
        if path in followed or path.startswith(composed):
            continue
        name = f"{path}.weight".removeprefix(".")
        if isinstance(module, Composed):
            own = {n.removeprefix(f"{path}."): d for n, d in densities.items() if n.startswith(f"{path}.")}
            portions = {f"{path}.{key}": portion for key, portion in module.portions(own).items()}
        elif name in densities and (isinstance(module, _ConvNd) or is_replaceable(module)):
            portions = {name: Portion(1.0, fans(module)[0] * densities[name])}
        else:
            continue
        fan_in = fans(dense.get_submodule(path))[0]
        yield from (_Found(key, name, fan_in, portion) for key, portion in portions.items())


def _first_deviations(dense: nn.Module) -> dict[str, float]:
    """The deviations that a model's parameters are drawn with; torch's generators stay as they are."""
    with torch.random.fork_rng([d for d in {p.device for p in dense.parameters()} if d.type == "cuda"]):
        fresh, drawn = copy.deepcopy(dense), how_drawn(dense)
        draw_anew(fresh, [name for name, _ in fresh.named_parameters() if name in drawn], drawn)
    first = how_drawn(fresh)
    return {name: first[name].deviation for name, _ in fresh.named_parameters(remove_duplicate=False) if name in first}


def _scale(weight: Tensor, deviation: float) -> None:
    before = float(weight.double().std(correction=0)) if weight.numel() > 1 else 0.0
    # Weights that are one value all over were put so on purpose.
    if before > 0.0 and deviation > 0.0:
        weight.mul_(deviation / before)
