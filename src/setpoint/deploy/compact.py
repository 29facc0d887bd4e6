"""A physically smaller model: what a run has emptied is taken out."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from setpoint.sparsifier import Sparsifier

# How far the smaller model's outputs may be from the masked one's, by the largest of these in size.
_TOLERANCE = 1e-5


@torch.no_grad()
def compact(sparsifier: Sparsifier, example_inputs: Any = None) -> nn.Module:
    """The model of a finished run without the units that went: fewer parameters, less memory, less arithmetic.

    It is a copy in ordinary modules of smaller sizes, which needs nothing of this library. What it computes is what the
    masked model computes. To train on, give it an optimizer of its own.

    Args:
        sparsifier: of a run that is frozen, with units that cross layers (`unit="channel"`, `"neuron"`, `"head"`).
        example_inputs: as the model is called: a tensor, or a tuple of arguments. If given, the outputs of both models
            on them are compared, in evaluation mode.

    Raises:
        ValueError: for a run that is not frozen, or whose units leave the shapes as they are.
        RuntimeError: if the outputs differ.
    """
    if sparsifier.wiring is None:
        raise ValueError(
            "the units of this run are parts of single parameters, whose zeros cannot be taken out of a dense tensor; "
            "possible: unit='channel', 'neuron' or 'head'"
        )
    if sparsifier.phase != "frozen":
        raise ValueError(f"the run is in its {sparsifier.phase} phase: what goes is known once it is frozen")
    small = copy.deepcopy(sparsifier.model)
    sparsifier.wiring.resize(small, sparsifier.kept_units())
    if example_inputs is not None:
        compare_outputs(sparsifier.model, small, example_inputs)
    return small


@torch.no_grad()
def compare_outputs(model: nn.Module, small: nn.Module, example_inputs: Any) -> None:
    """Check that two models compute the same, in evaluation mode.

    Raises:
        RuntimeError: if an output differs by more than 1e-5 of its largest entry.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    for one, other in zip(_outputs(model, inputs), _outputs(small, inputs)):
        scale = max(float(one.abs().max()), torch.finfo(torch.float32).tiny)
        off = float((one - other).abs().max()) / scale
        if off > _TOLERANCE:
            raise RuntimeError(
                f"the smaller model's outputs differ from the masked one's by {off:.2g} of their size: please report "
                "this with the model"
            )


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        leaves = _pytree.tree_leaves(model(*inputs))
    finally:
        for module, mode in training.items():
            module.training = mode
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel()]
