"""From a model to its wiring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from setpoint.inputs import call_arguments, failure
from setpoint.wiring import rules
from setpoint.wiring.axes import Axis, pin, unify
from setpoint.wiring.branches import find, named
from setpoint.wiring.groups import assemble
from setpoint.wiring.modules import descriptions, siblings
from setpoint.wiring.settle import Key, settle
from setpoint.wiring.sizes import AttributeOf, Expression, Operation, SizeOf
from setpoint.wiring.trial import removable
from setpoint.wiring.walk import Walk
from setpoint.wiring.watch import export
from setpoint.wiring.wiring import Wiring

__all__ = ["derive", "rules"]


def derive(
    model: nn.Module,
    args: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    inexact_norms: bool = False,
    branches: bool = False,
) -> Wiring:
    """Find out which axes of a model's tensors are one and the same, and which may change.

    The model is exported with fake tensors: nothing is computed, and its parameters, buffers and mode stay as they are.
    Sizes that its forward pass reads off tensors, or from integer attributes of its modules, are followed; sizes that
    are written as numbers pin the axes that they are sizes of. So does every operator that is not understood.

    Args:
        model: in the mode in which it is to be looked at.
        args: example inputs: a tensor, a tuple of arguments, or a dict of them by name. Their values do not matter.
        kwargs: further ones by name.
        inexact_norms: leave axes free although layer, group or root-mean-square norms average over them. A model so
            resized differs from the masked one, as the norms then see other averages.
        branches: look for residual branches as well, and put each to the test: for this alone the model is run, a
            copy of it on random inputs.

    Where the model is not what it seems (a Python branch that depends on the mode, arithmetic of an extension that asks
    tensors for their sizes), `check` tells.

    Returns:
        The groups of units that may be removed or repeated, and the reasons for all that may not.

    Raises:
        ValueError: if the model cannot be exported.
    """
    inputs, by_name = call_arguments(args)
    by_name |= kwargs or {}
    try:
        program, numbers = export(model, inputs, by_name)
    except Exception as error:
        raise ValueError(f"torch.export cannot trace the model with these inputs: {failure(error, args)}") from error
    walk = Walk(model, program, inexact_norms)
    for expression in numbers:
        walk.fix(expression, _place(walk, expression), "its size is used as a number or compared")
    _join_siblings(model, walk)
    _pin_unread(walk)
    wiring = assemble(model, walk, settle(walk, _described(model, walk)))
    return _with_branches(model, wiring, program, inputs, by_name) if branches else wiring


def _with_branches(
    model: nn.Module, wiring: Wiring, program: ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Wiring:
    found, refused = find(model, program, {name: first for first, names in wiring.aliases.items() for name in names})
    fit, unfit = removable(model, named(model, found), args, kwargs)
    return replace(wiring, branches=tuple(fit), refused=refused | unfit)


def _place(walk: Walk, expression: Expression) -> str:
    """The path of a module from which a size came."""
    if isinstance(expression, Operation):
        return _place(walk, expression.left) or _place(walk, expression.right)
    if isinstance(expression, AttributeOf):
        return expression.module
    return walk.places.get(expression.node, "") if isinstance(expression, SizeOf) else ""


def _join_siblings(model: nn.Module, walk: Walk) -> None:
    for path, module in model.named_modules():
        for first, second in siblings(module):
            axes = [_axis(walk, path, tensor, axis) for tensor, axis in (first, second)]
            if axes[0] is not None and axes[1] is not None:
                unify(axes[0], axes[1], path)


def _described(model: nn.Module, walk: Walk) -> dict[Key, Axis]:
    found: dict[Key, Axis] = {}
    for path, module in model.named_modules():
        for name, position, tensor, dim in descriptions(module):
            axis = _axis(walk, path, tensor, dim)
            if axis is not None:
                found[path, name, position] = axis
    return found


def _axis(walk: Walk, path: str, tensor: str, axis: int) -> Axis | None:
    value = walk.value_of(f"{path}.{tensor}" if path else tensor)
    return None if value is None else value.axes[axis]


def _pin_unread(walk: Walk) -> None:
    read = {atom for use in walk.uses for atom in use.axis.atoms()}
    for name, value in walk.tensors.items():
        atoms: Sequence[Axis] = [a for axis in value.axes for a in axis.atoms()]
        pin([a for a in atoms if a not in read], "no operator reads it", name.rpartition(".")[0])
