"""Sparse wide: inputs and outputs of every layer multiplied, along the model's wiring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from setpoint.transforms.flow import Flow
from setpoint.transforms.initialise import draw_anew, how_drawn
from setpoint.transforms.patterns import Chosen
from setpoint.transforms.sizes import wide_factor, wide_size
from setpoint.wiring import Group, Wiring, check_growth, derive
from setpoint.wiring.check import divide, is_tied
from setpoint.wiring.layouts import Layout

Initialise = Literal["fresh", "grow"] | Callable[[nn.Module], None]

# Reasons for which the model's own interface keeps its sizes, whatever the user may want.
_INTERFACE = ("model input", "model output", "vocabulary", "kernel")


def widen(
    model: nn.Module,
    sparsity: float,
    example_inputs: tuple[Any, ...],
    flow: Flow,
    flops: Mapping[str, int],
    chosen: Chosen,
    initialise: Initialise,
) -> tuple[list[str], dict[str, str]]:
    """Multiply the widths of a model by `sqrt(1 / (1 - s))`, in place.

    Args:
        model: to be changed.
        sparsity: that is to be spent.
        example_inputs: what the model is called with.
        flow: through the model.
        flops: of its weights.
        chosen: which of its axes, by the names of what makes their values.
        initialise: `"grow"` to repeat units, anything else for first weights.

    Returns:
        Names of the weights that are to be sparse; and of those that were left dense, with the reason.

    Raises:
        ValueError: naming what forbids it.
    """
    wiring = derive(model, example_inputs, inexact_norms=True)
    weights = {name: p for name, p in model.named_parameters() if flops.get(name) and p.ndim >= 2}
    left = {name: "it reads the model's input" for name in weights if name in flow.first}
    left |= {name: "it makes the model's output" for name in weights if name in flow.last}
    chosen.check({g.name: tuple(_makers(wiring, g)) for g in wiring.groups} | {name: _module(name) for name in weights})
    free = [g for g in wiring.groups if chosen.takes(g.name, *_makers(wiring, g))]
    groups = _one_of_each_product(wiring, free)
    left |= {name: "it is frozen" for name, p in weights.items() if not p.requires_grad}
    inner = [name for name in weights if name not in left and not chosen.leaves(name, *_module(name))]
    if chosen.include is None:
        _check_axes(wiring, inner)
    if not groups:
        raise ValueError(f"no axis can be widened of those that were chosen{_because(wiring)}")
    selections = {g.name: _selection(g, sparsity) for g in groups}
    check_growth(model, wiring, selections, example_inputs)
    before = {name: weights[name].shape for name in inner}
    if initialise == "grow":
        _check_exact(wiring, groups, selections)
        wiring.resize(model, selections)
        divide(model, wiring, selections)
    else:
        drawn = how_drawn(model)
        wiring.resize(model, selections)
        changed = [name for name, layouts in wiring.layouts.items() if any(_grows(la, selections) for la in layouts)]
        draw_anew(model, changed, drawn)
    return [name for name in inner if model.get_parameter(name).shape != before[name]], left


def _module(parameter: str) -> tuple[str]:
    return (parameter.rpartition(".")[0],)


def _makers(wiring: Wiring, group: Group) -> Iterator[str]:
    """Names of the parameters, and their modules, that make a group's values."""
    for s in group.slices:
        if s.role == "produces":
            for alias in wiring.aliases[s.tensor]:
                yield from (alias, *_module(alias))


def _one_of_each_product(wiring: Wiring, free: list[Group]) -> list[Group]:
    """Of an axis that is a product of several groups, all but one, or its size would be multiplied twice.

    Of the heads and what each of them has, the heads grow, as in larger models; of the groups of a convolution and the
    channels of each, the channels.
    """
    candidates = {g.name: g for g in free}
    counts = {a.layout.group for a in wiring.attributes if a.name in ("groups", "num_groups")}
    order = {g.name: i for i, g in enumerate(wiring.groups)}

    def rank(name: str) -> tuple[bool, bool, int]:
        is_head = candidates[name].kind == "head"
        return name in counts, not is_head, order[name] if is_head else -order[name]

    for layouts in wiring.layouts.values():
        for product in (p for layout in layouts for p in _products(layout)):
            several = [[g for g in child.groups if g in candidates] for child in product]
            growing = sorted((names for names in several if names), key=lambda names: min(map(rank, names)))
            for name in (name for names in growing[1:] for name in names):
                candidates.pop(name, None)
    return list(candidates.values())


def _products(layout: Layout) -> Iterator[tuple[Layout, ...]]:
    if layout.factors:
        yield layout.factors
    for child in (*layout.factors, *layout.parts):
        yield from _products(child)


def _check_axes(wiring: Wiring, names: list[str]) -> None:
    """Refuse a model in which a layer keeps a size for another reason than the model's own inputs and outputs.

    Raises:
        ValueError: naming the layer, the module that forbids it, and why.
    """
    reasons: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for pin in wiring.pinned:
        reasons.setdefault((pin.tensor, pin.axis), []).append((pin.reason, pin.module))
    for name in names:
        for axis, layout in enumerate(wiring.layouts[name]):
            pins = [(why, where) for why, where in reasons.get((name, axis), []) if why not in _INTERFACE]
            if pins and not layout.groups:
                why, where = pins[0]
                raise ValueError(
                    f"axis {axis} of {name!r} cannot be widened: {why}, in {where or 'the model itself'!r}. Leave the "
                    f"layer as it is by exclude={name!r}, or name the axes that are to grow by include=, of "
                    f"{', '.join(g.name for g in wiring.groups) or 'none'}"
                )


def _because(wiring: Wiring) -> str:
    pinned = [p for p in wiring.pinned if p.reason != "kernel"]
    pins = dict.fromkeys(f"{p.reason} in {p.module or 'the model itself'!r}" for p in pinned)
    return f": {'; '.join(pins)}" if pins else ""


def _selection(group: Group, sparsity: float) -> Tensor:
    """Which units there are afterwards: all, evenly repeated."""
    size = wide_size(group.size, sparsity)
    if size == group.size:
        raise ValueError(
            f"{group.name!r} has {group.size} units of kind {group.kind!r}; {wide_factor(sparsity):.4g} times as many, "
            f"at sparsity={sparsity}, are no whole unit more: leave them as they are by exclude={group.name!r}, or ask "
            "for a higher sparsity"
        )
    return torch.arange(size) * group.size // size


def _grows(layout: Layout, selections: Mapping[str, Tensor]) -> bool:
    return any(group in selections for group in layout.groups)


def _check_exact(wiring: Wiring, groups: list[Group], selections: Mapping[str, Tensor]) -> None:
    """Refuse growth that would not keep the function.

    Raises:
        ValueError: naming the units.
    """
    for group in groups:
        if is_tied(group):
            raise ValueError(
                f"{group.name!r} is made and read by one tied weight, so that repeating its units changes what the "
                "model computes: initialise='fresh' is possible"
            )
        if group.name in wiring.inexact and len(selections[group.name]) % group.size:
            raise ValueError(
                f"a norm averages over the {group.size} units of {group.name!r}: repeated to "
                f"{len(selections[group.name])}, not all as often, they change what the model computes. Possible are "
                "initialise='fresh', and sparsities such as 0.75 that multiply sizes by a whole number"
            )
