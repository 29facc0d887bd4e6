"""What a whole model costs, as a function of how many units stay in each of its groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from torch import nn

from setpoint.wiring import Wiring
from setpoint.wiring.layouts import Layout

# Of how many units stay in each group, in the order of the layers.
WholeCost = Callable[[Sequence[int]], float]


def params_of_widths(model: nn.Module, wiring: Wiring, groups: Sequence[str]) -> WholeCost:
    """The number of parameters, all of the model's: weights, biases and norms, shared ones once.

    Args:
        model: that the wiring was derived from.
        wiring: its axes.
        groups: names of the groups whose widths change, in the order in which widths are given.
    """
    fixed = 0.0
    changing: list[tuple[int, list[Layout]]] = []
    parameters = dict(model.named_parameters(remove_duplicate=False))
    seen = {alias for first, aliases in wiring.aliases.items() for alias in aliases if alias != first}
    for name, parameter in parameters.items():
        if name in seen:
            continue
        layouts = wiring.layouts.get(name, ())
        moving = [layout for layout in layouts if set(layout.groups) & set(groups)]
        if moving:
            constant = prod(layout.size for layout in layouts if layout not in moving)
            changing.append((constant, moving))
        else:
            fixed += parameter.numel()

    def cost(widths: Sequence[int]) -> float:
        by_name = dict(zip(groups, widths))
        return fixed + sum(c * prod(_size(layout, by_name) for layout in moving) for c, moving in changing)

    return cost


def _size(layout: Layout, widths: Mapping[str, int]) -> int:
    if layout.factors:
        return prod(_size(child, widths) for child in layout.factors)
    if layout.parts:
        return sum(_size(child, widths) for child in layout.parts)
    return layout.size if layout.group is None else widths.get(layout.group, layout.size)
