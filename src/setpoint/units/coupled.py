"""Units that cross layers: a channel, neuron or head with all that makes, scales and reads it; a residual branch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from setpoint.inputs import call_arguments
from setpoint.optimizer_set import OptimizerSet
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
    optimizer: Optimizer | OptimizerSet,
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
    candidates = list(_candidates(wiring, unit))
    _check_patterns(unit, candidates, include=patterns(include), exclude=patterns(exclude))
    left = dict(wiring.refused) if unit == "layer" else dict(_pinned(wiring))
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))
    held = {p for group in optimizer.param_groups for p in group["params"]}
    chosen = {BRANCHES}
    for candidate in candidates:
        if not candidate.is_asked_for(patterns(include), patterns(exclude)):
            continue
        tensors = {plain_name(t): parameters[t] for t in candidate.reached if t in parameters}
        frozen = next((name for name, p in tensors.items() if not p.requires_grad), None)
        if frozen is not None:
            left[candidate.name] = f"its units reach into {frozen!r}, which is frozen (requires_grad is False)"
            continue
        missing = next((name for name, p in tensors.items() if p not in held), None)
        if missing is not None:
            raise ValueError(
                f"units of {candidate.name!r} reach into the parameter {missing!r}, which is not held by the "
                "optimizer: add it there, or leave the group out by exclude="
            )
        chosen.add(candidate.name)
    if chosen == {BRANCHES}:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left.items()) or "the model has none"
        raise ValueError(f"there are no units of kind {unit!r} to choose from ({reasons})")
    wiring = replace(wiring, branches=tuple(branch for branch in wiring.branches if branch.name in chosen))
    return Selection(tuple(la for la in layers_of(model, wiring, unit) if la.name in chosen), left), wiring


@dataclass(frozen=True)
class _Candidate:
    """A group or a branch, the tensors that make its units' values, and all that the units reach into."""

    name: str
    made: Sequence[str]
    reached: Sequence[str]

    def fits(self, globs: Sequence[str]) -> bool:
        return matches([self.name, *self.made], globs)

    def is_asked_for(self, include: Sequence[str] | None, exclude: Sequence[str] | None) -> bool:
        return (include is None or self.fits(include)) and not self.fits(exclude or ())


def _candidates(wiring: Wiring, unit: str) -> Iterator[_Candidate]:
    if unit == "layer":
        yield from (_Candidate(b.name, b.parameters, b.parameters) for b in wiring.branches)
    for group in wiring.groups:
        if group.kind in COUPLED[unit]:
            made = [s.tensor for s in group.slices if s.role == "produces"]
            yield _Candidate(group.name, made, [s.tensor for s in group.slices])


def _check_patterns(unit: str, candidates: Sequence[_Candidate], **given: Sequence[str] | None) -> None:
    for argument, globs in given.items():
        for pattern in globs or ():
            if not any(candidate.fits([pattern]) for candidate in candidates):
                possible = ", ".join(candidate.name for candidate in candidates) or "none"
                kind = "branch" if unit == "layer" else "group"
                raise ValueError(f"{argument}={pattern!r} matches no {kind} of unit {unit!r}; possible: {possible}")


def wiring_for(model: nn.Module, unit: str, example_inputs: Any) -> Wiring:
    """The wiring of a model, with residual branches where these are the units."""
    return derive(model, *call_arguments(example_inputs), branches=unit == "layer")


def layers_of(model: nn.Module, wiring: Wiring, unit: str) -> list[Layer]:
    """All units of a kind: a layer for each group, or one for the residual branches."""
    if unit == "layer":
        return [layer_of_branches(model, wiring.branches)]
    return [layer_of(model, group) for group in wiring.groups if group.kind in COUPLED[unit]]


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
