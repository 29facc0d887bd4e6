"""Floating-point operations of a forward pass, by the parameter that they multiply with."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product
from math import isclose, prod
from typing import Any

import torch
from torch import nn

from setpoint.budget.watching import FlopCount, watch_forward
from setpoint.budget.whole import WholeCost, parameter_sizes
from setpoint.inputs import running_on
from setpoint.meta import on_meta
from setpoint.units import Layer, plain_name
from setpoint.wiring import Wiring


def count_flops(model: nn.Module, example_inputs: Any) -> tuple[dict[str, int], int]:
    """Operations of one forward pass in evaluation mode, a multiplication and an addition counting two.

    Attention is counted as well. Nothing is computed where that can be avoided (`watch_forward`).

    Args:
        model: not changed.
        example_inputs: a tensor, a tuple of arguments, or a dict of them by name.

    Returns:
        By the name of the weight that is multiplied with; and those between activations, as in attention.
    """
    counter, _ = watch_forward(model, example_inputs, FlopCount)
    return dict(counter.by_parameter), counter.rest


def flops_per_entry(model: nn.Module, layers: Sequence[Layer], example_inputs: Any) -> dict[str, float]:
    """By layer, the operations that one entry of its parameter takes part in.

    Args:
        model: not changed.
        layers: of one parameter each.
        example_inputs: what one forward pass is; its batch counts.

    Raises:
        ValueError: for inputs that the model cannot be run on, and for a parameter whose entries take part in no
            operations, as far as can be seen, or in unequal numbers.
    """
    with running_on(example_inputs):
        counter, _ = watch_forward(model, example_inputs, FlopCount)
    pieces = {plain_name(name): found for name, found in counter.by_piece.items()}
    return {layer.name: _each(layer, pieces.get(layer.name, {})) for layer in layers}


def _each(layer: Layer, pieces: Mapping[tuple[int, int], int]) -> float:
    """The operations of each entry of a parameter, by those of its pieces."""
    rates = {flops / entries for (_, entries), flops in pieces.items()}
    whole = sum(entries for _, entries in pieces) == layer.parts[0].parameter.numel()
    if len(rates) == 1 and whole:
        return rates.pop()
    seen = "are not seen" if not pieces else "differ from entry to entry, or of some are not seen"
    raise ValueError(
        f"the operations that the entries of {layer.name!r} take part in on example_inputs {seen}: a target in FLOPs "
        "would be missed; possible: a target in params, or leave it out by exclude="
    )


def flops_of_widths(model: nn.Module, wiring: Wiring, groups: Sequence[str], example_inputs: Any) -> WholeCost:
    """Operations of a forward pass by the number of units that stay in each group.

    Those of a weight are in proportion to its size. Those between activations are in proportion to the units of one
    group each (attention's to its heads), or of several that are factors of one axis (keys shared by queries), which
    is measured.

    Args:
        model: that the wiring was derived from.
        wiring: its axes.
        groups: names of the groups whose widths change, in the order in which widths are given.
        example_inputs: what one forward pass is; its batch counts.

    Raises:
        ValueError: if the operations depend on the widths in another way.
    """
    by_parameter, rest = count_flops(model, example_inputs)
    fixed, changing = parameter_sizes(model, wiring, groups)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    constant = float(sum(flops for name, flops in by_parameter.items() if name in fixed))
    moving = [(by_parameter[name] / sizes[name], size) for name, size in changing.items() if name in by_parameter]
    full = {name: wiring[name].size for name in groups}
    resized = _Resized(model, wiring, example_inputs)
    between = _between(resized, wiring, full, rest)

    def cost(widths: Sequence[int]) -> float:
        by_name = dict(zip(groups, widths))
        gone = {name: by_name[name] - size for name, size in full.items()}
        activations = sum(each * prod(gone[name] for name in part) for part, each in between.items())
        return constant + activations + sum(each * size(by_name) for each, size in moving)

    half = {name: -(-size // 2) for name, size in full.items()}
    if not isclose(cost(list(half.values())), sum(resized(half)), rel_tol=1e-9):
        raise ValueError(
            f"the operations of a forward pass cannot be told from the widths of {', '.join(groups)}, which several "
            "tensors may multiply: a target in FLOPs would be missed; possible: a target in params, or leave groups "
            "out by exclude="
        )
    return cost


class _Resized:
    """Counts the operations of the model at other widths: those with parameters, and those between activations."""

    def __init__(self, model: nn.Module, wiring: Wiring, inputs: Any) -> None:
        self._meta, self._wiring, self._inputs = on_meta(model), wiring, inputs

    def __call__(self, widths: Mapping[str, int]) -> tuple[int, int]:
        twin = copy.deepcopy(self._meta)
        self._wiring.resize(twin, {name: torch.arange(width) for name, width in widths.items()})
        by_parameter, rest = count_flops(twin, self._inputs)
        return sum(by_parameter.values()), rest


def _between(resized: _Resized, wiring: Wiring, full: Mapping[str, int], rest: int) -> dict[frozenset[str], int]:
    """Operations between activations, measured where one unit has gone: by groups, those of each unit of all of them.

    What is said of several groups comes on top of what is said of fewer.
    """
    wide = [name for name, size in full.items() if size > 1]

    def one_less(names: Iterable[str]) -> int:
        return resized({name: full[name] - 1 for name in names})[1]

    parts = [frozenset[str]()]
    if rest and one_less(wide) != rest:
        parts += dict.fromkeys(frozenset(part) for part in _multiplied(wiring, wide))
    measured = {part: one_less(part) if part else rest for part in parts}
    terms = {part: sum((-1) ** len(less) * measured[less] for less in measured if less <= part) for part in parts}
    return {part: each for part, each in terms.items() if each}


def _multiplied(wiring: Wiring, groups: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Each group alone, and in all combinations those of different factors of one axis."""
    yield from ((name,) for name in groups)
    layouts = [layout for axes in wiring.layouts.values() for layout in axes]
    while layouts:
        layout = layouts.pop()
        layouts += [*layout.factors, *layout.parts]
        factors = [[name for name in factor.groups if name in groups] for factor in layout.factors]
        for count in range(2, len(factors) + 1):
            for chosen in combinations(factors, count):
                yield from product(*chosen)
