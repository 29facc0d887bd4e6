"""A physically smaller model: what is empty is taken out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from setpoint.claims import holders
from setpoint.deploy.running import difference, outputs_of
from setpoint.inputs import call_arguments, failure
from setpoint.inspection import APPLY, listed
from setpoint.sparsifier import Sparsifier
from setpoint.units import COUPLED, Layer, layers_of, unwrap
from setpoint.wiring import BRANCHES, Wiring, derive

# How far the smaller model's outputs may be from the masked one's, by the largest of these in size.
_TOLERANCE = 1e-5


@torch.no_grad()
def compact(source: Sparsifier | nn.Module, example_inputs: Any = None) -> nn.Module:
    """A model without the units that went: fewer parameters, less memory, less arithmetic.

    It is a copy in ordinary modules of smaller sizes, which needs nothing of this library. Where whole branches went,
    modules without parameters that answer zeros stand in their places. What it computes is what the masked model
    computes. To train on, give it an optimizer of its own.

    Args:
        source: a run that is frozen, with units that cross layers (`unit="channel"`, `"neuron"`, `"head"`, `"layer"`);
            or a model, such as one that was loaded, of which all channels, neurons and heads go that are zero in every
            parameter they reach into.
        example_inputs: as the model is called: a tensor, a tuple of arguments, or a dict of them by name. If given, the
            outputs of both models on them are compared, in evaluation mode. A model needs them, to derive the units.

    Raises:
        TypeError: for what is neither a run nor a model.
        ValueError: for a run that is not frozen, or whose units leave the shapes as they are; for a run whose model is
            not what it left; for a model without example inputs, and for inputs that the model cannot be called with.
        RuntimeError: if the outputs differ.
    """
    if not isinstance(source, Sparsifier | nn.Module):
        raise TypeError(f"source must be a Sparsifier or a torch.nn.Module, not {type(source).__name__}")
    model, wiring, kept = _of_run(source) if isinstance(source, Sparsifier) else _of_model(source, example_inputs)
    small = copy.deepcopy(model)
    wiring.resize(small, kept)
    if example_inputs is not None:
        _check_call(model, example_inputs)
        compare_outputs(model, small, example_inputs)
    return small


def _check_call(model: nn.Module, example_inputs: Any) -> None:
    try:
        outputs_of(model, example_inputs)
    except Exception as error:
        raise ValueError(f"the model cannot be called with example_inputs: {failure(error, example_inputs)}") from error


def _of_run(sparsifier: Sparsifier) -> tuple[nn.Module, Wiring, dict[str, Tensor]]:
    if sparsifier.wiring is None:
        raise ValueError(
            "the units of this run are parts of single parameters, whose zeros cannot be taken out of a dense tensor; "
            "possible: unit='channel', 'neuron', 'head' or 'layer'"
        )
    if sparsifier.phase != "frozen":
        raise ValueError(
            f"the run is in its {sparsifier.phase} phase, at step {sparsifier.step:,} of {sparsifier.timeline.steps:,}:"
            " what goes is known once it is frozen; sparsifier.freeze() makes the cut now"
        )
    if differences := sparsifier.inspect().differences:
        raise ValueError(f"the model is not what the run left: {listed(differences)}; {APPLY}")
    return sparsifier.model, sparsifier.wiring, sparsifier.kept_units()


def _of_model(model: nn.Module, example_inputs: Any) -> tuple[nn.Module, Wiring, dict[str, Tensor]]:
    if example_inputs is None:
        raise ValueError("pass example_inputs=, what the model is called with, to derive which units it has")
    model = unwrap(model)
    for run in holders(model):
        run.check("the model was compacted")
    wiring = derive(model, *call_arguments(example_inputs))
    layers = [layer for unit in COUPLED if unit != "layer" for layer in layers_of(model, wiring, unit)]
    return model, wiring, living_units(layers)


def living_units(layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Numbers of the units with an entry that is not zero, by layer; of an axis without any the first unit stays."""
    alive = {layer.name: layer.alive().flatten().nonzero().flatten().cpu() for layer in layers}
    first = torch.zeros(1, dtype=torch.long)
    return {name: units if len(units) or name == BRANCHES else first for name, units in alive.items()}


def compare_outputs(model: nn.Module, small: nn.Module, example_inputs: Any) -> None:
    """Check that two models compute the same, in evaluation mode.

    Where outputs differ, float64 tells a fault from rounding, which grows with depth and in lower precision.

    Raises:
        RuntimeError: if an output differs by more than 1e-5 of its largest entry, in float64 as well.
    """
    off = difference(outputs_of(model, example_inputs), outputs_of(small, example_inputs))
    if off > _TOLERANCE:
        inputs = _pytree.tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, example_inputs)
        one, other = copy.deepcopy(model).double(), copy.deepcopy(small).double()
        off = difference(outputs_of(one, inputs), outputs_of(other, inputs))
    if off > _TOLERANCE:
        raise RuntimeError(
            f"the smaller model's outputs differ from the masked one's by {off:.2g} of their size: please report "
            "this with the model"
        )
