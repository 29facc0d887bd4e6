"""Units that cross layers: a channel, neuron or head with everything that makes, scales and reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from setpoint.inputs import call_arguments
from setpoint.units.layer import Layer, Part
from setpoint.units.layout import Layout
from setpoint.units.names import plain_name
from setpoint.units.positions import Positions
from setpoint.units.select import Patterns, Selection, matches, patterns
from setpoint.wiring import Group, Wiring, derive

# The kinds of groups whose units each name means.
COUPLED: dict[str, tuple[str, ...]] = {"channel": ("channel",), "neuron": ("neuron",), "head": ("head",)}


def select_coupled(
    model: nn.Module,
    optimizer: Optimizer,
    unit: str,
    example_inputs: Any,
    include: Patterns = None,
    exclude: Patterns = None,
) -> tuple[Selection, Wiring]:
    """Choose groups of units along the model's wiring: every group of the unit's kind.

    Args:
        model: unwrapped.
        optimizer: must hold every parameter that the units reach into.
        unit: `"channel"` (of convolutions), `"neuron"` (between two linear layers) or `"head"` (of attention).
        example_inputs: what the model is called with: a tensor, a tuple of arguments, or a dict of them by name.
        include: globs on the names of groups and of the weights and biases that make their values.
        exclude: likewise.

    Returns:
        The layers, one a group, with what is left dense and why; and the wiring.

    Raises:
        ValueError: if there are no such units, if a pattern matches none, or for a parameter that cannot be taken.
    """
    wiring = derive(model, *call_arguments(example_inputs))
    groups = {g.name: g for g in wiring.groups if g.kind in COUPLED[unit]}
    names = {name: [name, *(s.tensor for s in g.slices if s.role == "produces")] for name, g in groups.items()}
    for argument, given in (("include", include), ("exclude", exclude)):
        for pattern in patterns(given) or ():
            if not any(matches(aliases, [pattern]) for aliases in names.values()):
                possible = ", ".join(names) or "none"
                raise ValueError(f"{argument}={pattern!r} matches no group of unit {unit!r}; possible: {possible}")
    left = dict(_pinned(wiring))
    held = {p for group in optimizer.param_groups for p in group["params"]}
    layers = []
    for name, group in groups.items():
        included = include is None or matches(names[name], patterns(include) or [])
        if not included or matches(names[name], patterns(exclude) or []):
            continue
        layer = layer_of(model, group)
        frozen = next((part.name for part in layer.parts if not part.parameter.requires_grad), None)
        if frozen is not None:
            left[name] = f"its units reach into {frozen!r}, which is frozen (requires_grad is False)"
            continue
        missing = next((part.name for part in layer.parts if part.parameter not in held), None)
        if missing is not None:
            raise ValueError(
                f"units of {name!r} reach into the parameter {missing!r}, which is not held by the optimizer: add it "
                "there, or leave the group out by exclude="
            )
        layers.append(layer)
    if not layers:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left.items()) or "the model has none"
        raise ValueError(f"there are no units of kind {unit!r} to choose from ({reasons})")
    return Selection(tuple(layers), left), wiring


def layer_of(model: nn.Module, group: Group) -> Layer:
    """The units of a group, with the parameters that they reach into."""
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))
    parts = [
        Part(
            plain_name(s.tensor),
            parameters[s.tensor],
            Positions(Layout(tuple(parameters[s.tensor].shape)), s.axis, s.index),
            s.role == "consumes",
        )
        for s in group.slices
        if s.tensor in parameters
    ]
    return Layer(group.name, tuple(parts))


def _pinned(wiring: Wiring) -> Iterator[tuple[str, str]]:
    """Weights whose outputs must keep their number, and why."""
    for pin in wiring.pinned:
        if pin.axis == 0 and pin.tensor.endswith("weight"):
            yield pin.tensor, f"its outputs are pinned: {pin.reason}" + (f" (in {pin.module})" if pin.module else "")


def is_coupled(unit: object) -> bool:
    """Whether units of this name cross layers."""
    return isinstance(unit, str) and unit in COUPLED
