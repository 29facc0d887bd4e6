"""Units that cross layers: a channel, neuron or head with all that makes, scales and reads it; a residual branch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from setpoint.inputs import call_arguments
from setpoint.optimizer_set import OptimizerSet
from setpoint.units.branches import layer_of_branches
from setpoint.units.checks import check_model, check_parameter
from setpoint.units.layer import Layer, Part
from setpoint.units.layout import Layout
from setpoint.units.names import plain_name
from setpoint.units.positions import Positions
from setpoint.units.select import Patterns, Selection, matches, patterns
from setpoint.units.skipped import Skipped, grouped
from setpoint.units.unit import COUPLED
from setpoint.units.weights import never, places_of
from setpoint.wiring import BRANCHES, Group, Wiring, derive


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
    included, excluded = patterns("include", include), patterns("exclude", exclude)
    check_model(model)
    wiring = wiring_for(model, unit, example_inputs)
    candidates = list(_candidates(wiring, unit))
    _check_patterns(unit, candidates, include=included, exclude=excluded)
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))
    held = {p for group in optimizer.param_groups for p in group["params"]}
    left = dict(wiring.refused)  # of groups and branches
    chosen = {BRANCHES}
    for candidate in candidates:
        tensors = {plain_name(t): parameters[t] for t in candidate.reached if t in parameters}
        reason = candidate.refusal(included, excluded, tensors)
        if reason is not None:
            left[candidate.name] = reason
            continue
        for name, parameter in tensors.items():
            if parameter not in held:
                raise ValueError(
                    f"units of {candidate.name!r} reach into the parameter {name!r}, which is not held by the "
                    "optimizer: add it there, or leave the group out by exclude="
                )
            check_parameter(name, parameter, held)
        chosen.add(candidate.name)
    if chosen == {BRANCHES}:
        pinned = {name: why for name, why in _pinned(wiring) if name in parameters and parameters[name].ndim >= 2}
        reasons = "; ".join(grouped(left if unit == "layer" else left | pinned)) or "the model has none"
        raise ValueError(f"there are no units of kind {unit!r} to choose from ({reasons})")
    wiring = replace(wiring, branches=tuple(branch for branch in wiring.branches if branch.name in chosen))
    layers = tuple(la for la in layers_of(model, wiring, unit) if la.name in chosen)
    skipped = (*(Skipped(*item, 0) for item in left.items()), *_skipped(model, wiring, unit, layers, candidates, left))
    return Selection(layers, skipped, sum(p.numel() for p in model.parameters())), wiring


def _skipped(
    model: nn.Module,
    wiring: Wiring,
    unit: str,
    layers: Sequence[Layer],
    candidates: Sequence[_Candidate],
    left: Mapping[str, str],
) -> Iterator[Skipped]:
    """Every parameter of two or more axes that no unit of the layers reaches into, and why."""
    reached = {part.parameter for layer in layers for part in layer.parts}
    pinned = dict(_pinned(wiring))
    owners = {tensor: candidate.name for candidate in candidates for tensor in candidate.reached}
    kinds = {s.tensor: group.kind for group in wiring.groups for s in group.slices}
    first = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, places in places_of(model).items():
        if parameter.ndim < 2 or parameter in reached:
            continue
        name = first[parameter]
        reason = never(parameter, places) or left.get(owners.get(name, ""))
        if reason is None and unit == "layer":
            above = [path for path in left if name.startswith(f"{path}.")]
            reason = left[max(above, key=len)] if above else "it is in no residual branch that can be taken out"
        if reason is None and name in kinds:
            reason = f"its units are of kind {kinds[name]!r}, not {unit!r}"
        reason = reason or pinned.get(name, f"no units of kind {unit!r} reach it")
        yield Skipped(places[0].names[0], reason, parameter.numel())


@dataclass(frozen=True)
class _Candidate:
    """A group or a branch, the tensors that make its units' values, and all that the units reach into."""

    name: str
    made: Sequence[str]
    reached: Sequence[str]

    def fits(self, globs: Sequence[str]) -> bool:
        return matches([self.name, *self.made], globs)

    def refusal(
        self, include: Sequence[str] | None, exclude: Sequence[str] | None, reached: Mapping[str, nn.Parameter]
    ) -> str | None:
        """Why it is not taken, None if it is."""
        if self.fits(exclude or ()):
            return "exclude= leaves it out"
        if include is not None and not self.fits(include):
            return "include= does not name it"
        frozen = next((name for name, p in reached.items() if not p.requires_grad), None)
        return None if frozen is None else f"its units reach into {frozen!r}, which is frozen (requires_grad is False)"


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
    """Tensors of which an axis must keep its size, and why: the first such axis."""
    for pin in reversed(wiring.pinned):
        if pin.reason == "kernel":
            continue
        what = "outputs" if pin.axis == 0 else "inputs" if pin.axis == 1 else f"axis {pin.axis}"
        yield pin.tensor, f"its {what} are pinned: {pin.reason}"
