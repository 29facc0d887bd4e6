"""Which parameters of a model are made sparse, and into which units they fall."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from setpoint.optimizer_set import OptimizerSet
from setpoint.units.checks import check_model, check_parameter
from setpoint.units.kinds import partition
from setpoint.units.layer import Layer, Part
from setpoint.units.layout import Layout
from setpoint.units.skipped import Skipped, grouped
from setpoint.units.unit import Unit, check_unit, unit_name
from setpoint.units.weights import Place, layout_of, never, not_by_default, places_of

Patterns = str | Iterable[str] | None


@dataclass(frozen=True)
class Selection:
    """The layers chosen, and what is left dense.

    Attributes:
        layers: whose units come and go.
        skipped: every other parameter of two or more axes, and why it stays dense.
        model_params: how many entries the whole model's parameters have, shared ones counted once.
    """

    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...]
    model_params: int

    @property
    def left(self) -> dict[str, str]:
        """Why what is not taken stays dense, by name."""
        return {skipped.name: skipped.reason for skipped in self.skipped}

    def only(self, layers: Sequence[Layer], reason: str) -> Selection:
        """The selection with these of its layers; the others stay dense for the reason given."""
        out = [layer for layer in self.layers if layer not in layers]
        more = [Skipped(layer.name, reason, layer.parts[0].parameter.numel()) for layer in out]
        return replace(self, layers=tuple(layers), skipped=(*self.skipped, *more))


def select(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | OptimizerSet,
    unit: Unit,
    include: Patterns = None,
    exclude: Patterns = None,
    example_inputs: Any = None,
) -> Selection:
    """Choose the parameters to make sparse.

    By default those that layers multiply their inputs with: weights of Linear, convolutions, Bilinear, recurrent layers
    and MultiheadAttention, of the transformers library's `Conv1D`, and the stacked weights of experts (three axes, the
    first as long as the module says that it has experts). Never biases, norms and embeddings. A parameter shared by
    several modules is taken once, under its first name; one that is also an embedding's is left.

    Globs of `include` choose among all trainable parameters of two or more axes, by any of their names: `"*"` takes
    every one, embeddings included. Parameters of fewer axes, such as biases, are taken where `include` has their full
    name. What a parametrization computes a weight from is never taken. Globs of `exclude` take out what is left of it.

    Args:
        model: its parameters' names are what the globs are matched against, without the prefixes of wrappers.
        optimizer: must hold every parameter chosen.
        unit: what the parameters are divided into; those that have no such units are left.
        include: glob or globs, or full names.
        exclude: glob or globs.
        example_inputs: what the model is called with. Where no module tells which axes of a parameter are outputs and
            inputs, a forward pass on them shows it.

    Raises:
        TypeError: for what is no model, unit or glob.
        ValueError: if a pattern matches nothing, if a parameter named in full cannot be taken, if nothing is left to
            take, or if a chosen parameter is not held by the optimizer, has no values, or not real and finite ones.
    """
    check_unit(unit)
    included, excluded = patterns("include", include), patterns("exclude", exclude)
    check_model(model)
    places = places_of(model)
    names = {p: list(dict.fromkeys(n for place in held for n in place.names)) for p, held in places.items()}
    _check_patterns("include", included, [n for p, n in names.items() if p.ndim >= 2], list(names.values()))
    _check_patterns("exclude", excluded, list(names.values()), list(names.values()))

    reasons = {p: _reason(p, places[p], names[p], included, excluded) for p in names}
    derived = _derived(model, [p for p, reason in reasons.items() if reason is None], places, unit, example_inputs)
    held = {p for group in optimizer.param_groups for p in group["params"]}
    layers: list[Layer] = []
    skipped: list[Skipped] = []
    for parameter, reason in reasons.items():
        name = names[parameter][0]
        layout = layout_of(parameter, places[parameter], derived)
        units = partition(unit, layout) if reason is None else None
        if units is not None:
            check_parameter(name, parameter, held)
            layers.append(Layer(name, (Part(name, parameter, units),)))
            continue
        reason = reason or _without_units(unit, layout, example_inputs)
        if reason is not _EXCLUDED and set(included or ()) & set(names[parameter]):
            raise ValueError(f"parameter {name!r} was asked for by name, but {reason}")
        if parameter.ndim >= 2:
            skipped.append(Skipped(name, reason, parameter.numel()))
    if not layers:
        raise ValueError(_nothing_left(unit, skipped))
    return Selection(tuple(layers), tuple(skipped), sum(p.numel() for p in names))


_EXCLUDED = "exclude= leaves it out"


def _reason(
    parameter: Tensor,
    places: Sequence[Place],
    names: Sequence[str],
    included: Sequence[str] | None,
    excluded: Sequence[str] | None,
) -> str | None:
    """Why a parameter is not taken, None if it is asked for."""
    if matches(names, excluded or ()):
        return _EXCLUDED
    if (impossible := never(parameter, places)) is not None:
        return impossible
    unusual = not_by_default(parameter, places)
    if included is None:
        return unusual
    asked = set(included) & set(names) or (parameter.ndim >= 2 and matches(names, included))
    return None if asked else unusual or "include= does not name it"


def _derived(
    model: nn.Module,
    chosen: Sequence[Tensor],
    places: Mapping[nn.Parameter, Sequence[Place]],
    unit: Unit,
    example_inputs: Any,
) -> dict[Tensor, Layout]:
    """The layouts that a forward pass shows, where they matter and no module tells them."""
    if unit == "weight" or example_inputs is None:
        return {}
    unclear = [p for p in chosen if isinstance(p, nn.Parameter) and not layout_of(p, places[p], {}).known]
    if not unclear:
        return {}
    from setpoint.units.products import layouts_shown  # it watches as budgets do, which stand on units

    return layouts_shown(model, unclear, example_inputs)


def _without_units(unit: Unit, layout: Layout, example_inputs: Any) -> str:
    """Why a parameter has no units of a kind."""
    if layout.known or layout.shape == ():
        return f"its shape {layout.shape} has no units of kind {unit_name(unit)!r}"
    if example_inputs is None:
        return (
            "which of its axes are outputs and which inputs is not known; possible: pass example_inputs=, on which a "
            "forward pass shows it, or unit='weight'"
        )
    return (
        "the forward pass on example_inputs does not show which of its axes are outputs and which inputs; possible: "
        "unit='weight'"
    )


def patterns(argument: str, given: Patterns) -> list[str] | None:
    """Globs as a list; None for none.

    Raises:
        TypeError: for what is no string and holds no strings, naming the argument.
    """
    if given is None:
        return None
    found = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [given]
    for glob in found:
        if not isinstance(glob, str):
            raise TypeError(
                f"{argument}={given!r}: a glob or name is a string such as '*.weight', not {type(glob).__name__}"
            )
    return found


def matches(names: Iterable[str], globs: Iterable[str]) -> bool:
    """Whether any of the globs fits any of the names."""
    return any(fnmatchcase(name, glob) for name in names for glob in globs)


def _check_patterns(
    argument: str, patterns: Sequence[str] | None, possible: Sequence[Sequence[str]], names: Sequence[Sequence[str]]
) -> None:
    """Refuse a pattern that fits none of the possible parameters; full names may be of all the others, too."""
    for pattern in patterns or ():
        if any(matches(aliases, [pattern]) for aliases in possible) or any(pattern in aliases for aliases in names):
            continue
        listed = ", ".join(aliases[0] for aliases in possible) or "none"
        others = any(matches(aliases, [pattern]) for aliases in names)
        why = "no parameter of two or more axes (name other parameters in full)" if others else "nothing"
        raise ValueError(f"{argument}={pattern!r} matches {why}; possible: {listed}")


def _nothing_left(unit: Unit, skipped: Sequence[Skipped]) -> str:
    reasons = "; ".join(grouped({s.name: s.reason for s in skipped}))
    what = f"no parameter can be divided into units of kind {unit_name(unit)!r}"
    return f"{what} ({reasons})" if reasons else f"{what}: the model has no parameter of two or more axes"
