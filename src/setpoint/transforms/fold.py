"""A transformed model for inference: what adds up or multiplies to one layer becomes one layer."""

from __future__ import annotations

import copy

from torch import nn

from setpoint.transforms.doped import Doped
from setpoint.transforms.factorized import Factorized
from setpoint.transforms.parallel import Parallel
from setpoint.transforms.sparse_ift import MARK
from setpoint.transforms.swap import put


def fold(model: nn.Module) -> nn.Module:
    """A copy of a model in which replaced layers are one layer each again, with the outputs of evaluation mode.

    Parallel branches, each with its batch norm, add up to a layer that keeps what any branch keeps. Factorized layers
    with nothing or a batch norm in between multiply to one layer of the old sizes, and doped ones add up to one; both
    are then dense. Layers with an activation or a layer norm inside stay. A widened model has nothing to fold.

    Args:
        model: transformed and trained; stays as it is.

    Raises:
        ValueError: if there is nothing to fold, or a batch norm keeps no statistics.
    """
    made = copy.deepcopy(model)
    found = [m for m in made.modules() if isinstance(m, Parallel | Factorized | Doped)]
    pairs = [(module, folded) for module in found if (folded := module.fold()) is not None]
    if not pairs:
        there = "there is an activation or a layer norm in every replaced layer"
        why = there if found else "there are no replaced layers in it"
        raise ValueError(f"the model has nothing to fold: {why}")
    for replaced, folded in pairs:
        put(made, replaced, folded)
    marked = [m for m in made.modules() if hasattr(m, MARK) and len(pairs) == len(found)]
    for module in marked:
        delattr(module, MARK)
    return made
