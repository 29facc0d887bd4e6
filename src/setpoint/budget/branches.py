"""What residual branches cost: counted in models from which they are really taken out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from setpoint.budget.flops import count_flops
from setpoint.budget.target import Cost
from setpoint.budget.whole import SeparateCosts
from setpoint.meta import on_meta
from setpoint.wiring import Branch, without


def costs_of_branches(
    model: nn.Module, branches: Sequence[Branch], cost: Cost, example_inputs: Any
) -> SeparateCosts | None:
    """What each branch adds to the cost of the whole model.

    Args:
        model: not changed.
        branches: of the model.
        cost: what is counted.
        example_inputs: what one forward pass is, where operations are counted.

    Returns:
        The costs; None where units are counted.

    Raises:
        ValueError: if what a branch saves depends on the other branches.
    """
    if cost == "units":
        return None
    twin = on_meta(model)

    def counted(gone: Sequence[Branch]) -> float:
        with without(twin, gone):
            return _count(twin, cost, example_inputs)

    total = counted([])
    saved = [total - counted([branch]) for branch in branches]
    fixed = counted(branches)
    if total - sum(saved) != fixed:
        raise ValueError(
            f"of {total:g} {cost} the model's branches save {sum(saved):g} one by one, but {total - fixed:g} together: "
            "leave some out by exclude=, or choose another cost"
        )
    return SeparateCosts((torch.tensor(saved, dtype=torch.float64),), fixed)


def _count(model: nn.Module, cost: Cost, example_inputs: Any) -> float:
    if cost == "params":
        return float(sum(p.numel() for p in model.parameters()))
    if cost == "bytes":
        return float(sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())))
    by_parameter, rest = count_flops(model, example_inputs)
    return float(sum(by_parameter.values()) + rest)
