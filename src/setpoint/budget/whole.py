"""What a whole model costs, as a function of how many units stay in each of its groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

from torch import Tensor, nn

from setpoint.wiring import Wiring
from setpoint.wiring.layouts import Layout

# Of how many units stay in each group, in the order of the layers.
WholeCost = Callable[[Sequence[int]], float]


@dataclass(frozen=True)
class SeparateCosts:
    """What a whole model costs where each unit adds a cost of its own, whatever else stays.

    Attributes:
        units: of each layer's units, float64.
        fixed: of the model without any of them.
    """

    units: tuple[Tensor, ...]
    fixed: float


def params_of_widths(model: nn.Module, wiring: Wiring, groups: Sequence[str]) -> WholeCost:
    """The number of parameters, all of the model's: weights, biases and norms, shared ones once.

    Args:
        model: that the wiring was derived from.
        wiring: its axes.
        groups: names of the groups whose widths change, in the order in which widths are given.
    """
    fixed, changing = parameter_sizes(model, wiring, groups)
    constant = float(sum(fixed.values()))

    def cost(widths: Sequence[int]) -> float:
        by_name = dict(zip(groups, widths))
        return constant + sum(size(by_name) for size in changing.values())

    return cost


def bytes_of_widths(model: nn.Module, wiring: Wiring, groups: Sequence[str]) -> WholeCost:
    """The bytes of all parameters and buffers, in their own dtypes, shared ones once.

    Args:
        model: that the wiring was derived from.
        wiring: its axes.
        groups: names of the groups whose widths change, in the order in which widths are given.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    fixed, changing = _sizes(tensors, wiring, groups)
    each = {name: tensor.element_size() for name, tensor in tensors.items()}
    constant = float(sum(entries * each[name] for name, entries in fixed.items()))

    def cost(widths: Sequence[int]) -> float:
        by_name = dict(zip(groups, widths))
        return constant + sum(size(by_name) * each[name] for name, size in changing.items())

    return cost


def parameter_sizes(
    model: nn.Module, wiring: Wiring, groups: Sequence[str]
) -> tuple[dict[str, int], dict[str, Callable[[Mapping[str, int]], int]]]:
    """Entries of the parameters that no group reaches into, and of the others by the widths of the groups.

    Shared parameters are there once, under their first name.
    """
    return _sizes(dict(model.named_parameters()), wiring, groups)


def _sizes(
    tensors: Mapping[str, Tensor], wiring: Wiring, groups: Sequence[str]
) -> tuple[dict[str, int], dict[str, Callable[[Mapping[str, int]], int]]]:
    fixed: dict[str, int] = {}
    changing: dict[str, Callable[[Mapping[str, int]], int]] = {}
    for name, tensor in tensors.items():
        layouts = wiring.layouts.get(name, ())
        if any(set(layout.groups) & set(groups) for layout in layouts):
            changing[name] = partial(_entries, layouts)
        else:
            fixed[name] = tensor.numel()
    return fixed, changing


def _entries(layouts: Sequence[Layout], widths: Mapping[str, int]) -> int:
    return prod(_size(layout, widths) for layout in layouts)


def _size(layout: Layout, widths: Mapping[str, int]) -> int:
    if layout.factors:
        return prod(_size(child, widths) for child in layout.factors)
    if layout.parts:
        return sum(_size(child, widths) for child in layout.parts)
    return layout.size if layout.group is None else widths.get(layout.group, layout.size)
