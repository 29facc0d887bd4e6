"""Which units of a model a run is about, in one parameter or across several."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from setpoint.optimizer_set import OptimizerSet
from setpoint.units.checks import check_model
from setpoint.units.coupled import select_coupled
from setpoint.units.select import Patterns, Selection, select
from setpoint.units.unit import Unit, check_unit, is_coupled, unit_name
from setpoint.wiring import Wiring


def choose(
    model: nn.Module,
    optimizer: Optimizer | OptimizerSet,
    unit: Unit,
    include: Patterns = None,
    exclude: Patterns = None,
    example_inputs: Any = None,
) -> tuple[Selection, Wiring | None]:
    """Choose the units of a kind: `select` does so within parameters, `select_coupled` across layers.

    Returns:
        The layers, with what is left dense and why; and the wiring, of units that cross layers.

    Raises:
        TypeError: where these do.
        ValueError: where these do, and for units that cross layers if there are no inputs to derive them from.
    """
    check_unit(unit)
    check_model(model)
    if not is_coupled(unit):
        return select(model, optimizer, unit, include, exclude, example_inputs), None
    if example_inputs is None:
        raise ValueError(
            f"unit={unit!r} crosses layers: pass example_inputs=, what the model is called with, to derive its parts"
        )
    return select_coupled(model, optimizer, unit_name(unit), example_inputs, include, exclude)
