"""What a target counts, for the layers and the model at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from setpoint.budget.branches import costs_of_branches
from setpoint.budget.flops import flops_of_widths, flops_per_entry
from setpoint.budget.latency import LatencyOfWidths
from setpoint.budget.target import Target
from setpoint.budget.whole import SeparateCosts, WholeCost, bytes_of_widths, params_of_widths
from setpoint.units import Layer
from setpoint.wiring import BRANCHES, Wiring


def costs_of(
    model: nn.Module,
    layers: Sequence[Layer],
    wiring: Wiring | None,
    target: Target | None,
    example_inputs: Any,
) -> tuple[dict[str, float] | None, WholeCost | SeparateCosts | None]:
    """What an entry of each layer costs, or what the whole model does by the widths of its groups, or by its branches.

    Args:
        model: that holds the layers.
        layers: the layers to make sparse.
        wiring: the model's axes where the units cross layers.
        target: what is asked for.
        example_inputs: what the model is called with; needed to count operations.

    Returns:
        The `rates` and the `whole` of `setpoint.budget.allocate`; None where there is nothing to say.

    Raises:
        ValueError: for a target in FLOPs or milliseconds without example inputs, and for milliseconds of units that
            leave shapes as they are.
    """
    counted = "params" if target is None else target.counted
    names = [layer.name for layer in layers]
    if counted == "latency_ms":
        if wiring is None or names == [BRANCHES] or example_inputs is None:
            raise ValueError(
                "a target in milliseconds takes units along a width (unit='channel', 'neuron' or 'head') and "
                "example_inputs=, what the model is called with"
            )
        device = None if target is None else target.device
        return None, LatencyOfWidths(model, wiring, names, example_inputs, device)
    if wiring is not None and names == [BRANCHES]:
        return None, costs_of_branches(model, wiring.branches, counted, example_inputs)
    if counted == "flops":
        if example_inputs is None:
            raise ValueError("a target in FLOPs needs example_inputs=, what the model is called with")
        if wiring is not None:
            return None, flops_of_widths(model, wiring, names, example_inputs)
        return flops_per_entry(model, layers, example_inputs), None
    if counted == "bytes":
        if wiring is not None:
            return None, bytes_of_widths(model, wiring, names)
        return {layer.name: float(layer.parts[0].parameter.element_size()) for layer in layers}, None
    if wiring is not None and counted == "params":
        return None, params_of_widths(model, wiring, names)
    if wiring is not None and target is not None and target.multiple_of > 1:
        return None, lambda widths: float(sum(widths))
    return None, None
