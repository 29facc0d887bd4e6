"""Which axes of a parameter are outputs and which inputs, as the products of a forward pass show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from setpoint.budget.watching import OperatorWatch, storage, watch_forward
from setpoint.inputs import running_on
from setpoint.units.layout import Layout

_aten = torch.ops.aten
# Of each product, by the number of its factor among the tensors it takes: that factor's summed and free axes.
_PRODUCTS: dict[Any, dict[int, tuple[int, int | None]]] = {
    _aten.mm: {0: (1, 0), 1: (0, 1)},
    _aten.addmm: {1: (1, 0), 2: (0, 1)},
    _aten.bmm: {0: (2, 1), 1: (1, 2)},
    _aten.baddbmm: {1: (2, 1), 2: (1, 2)},
    _aten._grouped_mm: {0: (-1, -2), 1: (-2, -1)},
    _aten.mv: {0: (1, 0)},
    _aten.addmv: {1: (1, 0)},
}


class _Products(OperatorWatch):  # type: ignore[no-untyped-call]
    """Notes along which axes of parameters products sum.

    A factor is recognised as a view of a parameter by its memory, and its axes by their strides there.
    """

    def __init__(self, names: Sequence[str], twin: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parameters = {storage(p): (name, p) for name in names for p in (twin.get_parameter(name),)}
        # By parameter: pairs of the axes that are summed over and that are not; None where that cannot be told.
        self.seen: dict[str, set[tuple[int, int] | None]] = defaultdict(set)

    def saw(self, func: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor], flops: int | None) -> None:
        """Note an operator's products with parameters."""
        factors = _PRODUCTS.get(func._overloadpacket)
        for number, tensor in enumerate(inputs):
            if storage(tensor) not in self._parameters:
                continue
            name, parameter = self._parameters[storage(tensor)]
            if factors is not None and number in factors:
                self.seen[name].add(_axes(parameter, tensor, *factors[number]))
            elif flops is not None:
                self.seen[name].add(None)


def _axes(parameter: Tensor, factor: Tensor, summed: int, free: int | None) -> tuple[int, int] | None:
    inputs = _axis(parameter, factor.stride(summed))
    outputs = None if free is None else _axis(parameter, factor.stride(free))
    if inputs is None or outputs is None or inputs == outputs:
        return None
    # A view may show a part of an axis, and outputs of several matrices may be one axis of it; not so what is summed.
    return (inputs, outputs) if factor.shape[summed] <= parameter.shape[inputs] else None


def _axis(parameter: Tensor, stride: int) -> int | None:
    """The axis of a parameter along which steps of this stride go."""
    fits = [d for d in range(parameter.ndim) if parameter.stride(d) == stride and parameter.shape[d] > 1]
    return fits[0] if len(fits) == 1 else None


def layouts_shown(model: nn.Module, parameters: Sequence[Tensor], example_inputs: Any) -> dict[Tensor, Layout]:
    """The layouts of those parameters whose products are seen, and always along the same axes.

    Args:
        model: not changed.
        parameters: of the model; of two axes, or of three of which the first counts matrices of their own.
        example_inputs: what the model is called with.

    Raises:
        ValueError: if the model cannot be run on them.
    """
    first = {p: name for name, p in model.named_parameters()}
    named = {first[p]: p for p in parameters if isinstance(p, nn.Parameter)}
    with running_on(example_inputs):
        watch, _ = watch_forward(model, example_inputs, partial(_Products, list(named)))
    layouts = {named[name]: _layout(named[name], seen) for name, seen in watch.seen.items()}
    return {parameter: layout for parameter, layout in layouts.items() if layout is not None}


def _layout(parameter: Tensor, seen: set[tuple[int, int] | None]) -> Layout | None:
    if len(seen) != 1 or (axes := next(iter(seen))) is None:
        return None
    last = parameter.ndim - 1
    if parameter.ndim not in (2, 3) or set(axes) != {last - 1, last}:
        return None
    return Layout(tuple(parameter.shape), transposed=axes[0] == last - 1, stacked=parameter.ndim == 3)
