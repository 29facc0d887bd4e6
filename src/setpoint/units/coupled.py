"""Units that cross layers: a channel, neuron or head with all that makes, scales and reads it; a residual branch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from setpoint.inputs import call_arguments
from setpoint.units.branches import layer_of_branches
from setpoint.units.layer import Layer, Part
from setpoint.units.layout import Layout
from setpoint.units.names import plain_name
from setpoint.units.positions import Positions
from setpoint.units.select import Patterns, Selection, matches, patterns
from setpoint.wiring import BRANCHES, Group, Wiring, derive

# The kinds of groups whose units each name means; a layer is a residual branch, which is no group.
COUPLED: dict[str, tuple[str, ...]] = {"channel": ("channel",), "neuron": ("neuron",), "head": ("head",), "layer": ()}


def select_coupled(
    model: nn.Module,
    optimizer: Optimizer,
    unit: str,
    example_inputs: Any,
    include: Patterns = None,
    exclude: Patterns = None,
) -> tuple[Selection, Wiring]:
    """Choose units along the model's wiring: every group of the unit's kind, or every residual branch.

    Args:
        model: unwrapped.
        optimizer: must hold every parameter that the units reach into.
        unit: `"channel"` (of convolutions), `"neuron"` (between two linear layers), `"head"` (of attention) or
            `"layer"` (a residual branch).
        example_inputs: what the model is called with: a tensor, a tuple of arguments, or a dict of them by name.
        include: globs on the names of groups and of the weights and biases that make their values; on the names of
            branches and of their parameters.
        exclude: likewise.

    Returns:
        The layers, one a group or one for all branches, with what is left dense and why; and the wiring, its branches
        those chosen.

    Raises:
        ValueError: if there are no such units, if a pattern matches none, or for a parameter that cannot be taken.
    """
    wiring = wiring_for(model, unit, example_inputs)
    candidates = dict(_candidates(wiring, unit))
    for argument, given in (("include", include), ("exclude", exclude)):
        for pattern in patterns(given) or ():
            if not any(matches([name, *made], [pattern]) for name, (made, _) in candidates.items()):
                possible = ", ".join(candidates) or "none"
                what = "branch" if unit == "layer" else "group"
                raise ValueError(f"{argument}={pattern!r} matches no {what} of unit {unit!r}; possible: {possible}")
    left = dict(wiring.refused) if unit == "layer" else dict(_pinned(wiring))
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))
    held = {p for group in optimizer.param_groups for p in group["params"]}
    chosen = []
    for name, (made, reached) in candidates.items():
        included = include is None or matches([name, *made], patterns(include) or [])
        if not included or matches([name, *made], patterns(exclude) or []):
            continue
        tensors = [tensor for tensor in reached if tensor in parameters]
        frozen = next((t for t in tensors if not parameters[t].requires_grad), None)
        if frozen is not None:
            left[name] = f"its units reach into {plain_name(frozen)!r}, which is frozen (requires_grad is False)"
            continue
        missing = next((t for t in tensors if parameters[t] not in held), None)
        if missing is not None:
            raise ValueError(
                f"units of {name!r} reach into the parameter {plain_name(missing)!r}, which is not held by the "
                "optimizer: add it there, or leave the group out by exclude="
            )
        chosen.append(name)
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left.items()) or "the model has none"
        raise ValueError(f"there are no units of kind {unit!r} to choose from ({reasons})")
    wiring = replace(wiring, branches=tuple(branch for branch in wiring.branches if branch.name in chosen))
    return Selection(tuple(la for la in layers_of(model, wiring, unit) if la.name in (*chosen, BRANCHES)), left), wiring


def wiring_for(model: nn.Module, unit: str, example_inputs: Any) -> Wiring:
    """The wiring of a model, with residual branches where these are the units."""
    return derive(model, *call_arguments(example_inputs), branches=unit == "layer")


def layers_of(model: nn.Module, wiring: Wiring, unit: str) -> list[Layer]:
    """All units of a kind: a layer for each group, or one for the residual branches."""
    if unit == "layer":
        return [layer_of_branches(model, wiring.branches)]
    return [layer_of(model, group) for group in wiring.groups if group.kind in COUPLED[unit]]


def _candidates(wiring: Wiring, unit: str) -> Iterator[tuple[str, tuple[list[str], list[str]]]]:
    """Names of groups or branches, with the tensors that make their values and all that they reach into."""
    if unit == "layer":
        yield from ((b.name, (list(b.parameters), list(b.parameters))) for b in wiring.branches)
    for group in wiring.groups:
        if group.kind in COUPLED[unit]:
            made = [s.tensor for s in group.slices if s.role == "produces"]
            yield group.name, (made, [s.tensor for s in group.slices])


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
