"""Walking an exported graph: every operator says what it does to the axes of the tensors that pass through it."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node

from setpoint.wiring.axes import Axis, pin, unify
from setpoint.wiring.calls import (
    Call,
    Constraint,
    Role,
    Use,
    Value,
    call_of,
    fits,
    flat,
    module_of,
    refusal_of,
    resolved,
    with_sizes,
)
from setpoint.wiring.leaves import opaque_modules
from setpoint.wiring.sizes import AttributeOf, Constant, Expression, expression_of, is_size
from setpoint.wiring.watch import NAME, integers, plain

_logger = logging.getLogger(__name__)

Rule = Callable[["Walk", Call], "Value | tuple[Value | None, ...] | None"]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register what operators of these names, overloads and the underscore of in-place variants left out, do."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


# Operators that run a graph as it stands, in another mode of autograd, autocast or checkpointing.
TRANSPARENT = ("wrap", "tag_activation_checkpoint")


class Walk:
    """The axes of all tensors of an exported model.

    Args:
        model: that was exported.
        program: with sizes noted (`watch.export`).
        inexact_norms: whether an axis that a norm averages over may change.

    Attributes:
        tensors: parameters and buffers by the first of their names.
        uses, constraints: what the operators said.
        heads: axes that attention treats one position at a time, and the modules in which it does.
        mixed: axes whose positions are averaged over other positions, as the widths of attention's values are.
        averaged: axes that norms average over and that were left free.
        named, places: by the names that sizes refer to, values and the modules that made them.
    """

    def __init__(self, model: nn.Module, program: ExportedProgram, inexact_norms: bool = False) -> None:
        self.inexact_norms = inexact_norms
        self.tensors: dict[str, Value] = {}
        self.uses: list[Use] = []
        self.constraints: list[Constraint] = []
        self.heads: list[tuple[Axis, str]] = []
        self.mixed: list[Axis] = []
        self.averaged: list[Axis] = []
        self.named: dict[str, Value] = {}
        self.places: dict[str, str] = {}
        self._first_name: dict[str, str] = {}
        self._leaves = opaque_modules(model)
        self._declare(model)
        self._run(program.graph_module, self._placeholders(program), is_root=True)

    def _declare(self, model: nn.Module) -> None:
        seen: dict[int, str] = {}
        for named in (model.named_parameters, model.named_buffers):
            for name, tensor in named(remove_duplicate=False):
                first = seen.setdefault(id(tensor), name)
                self._first_name[name] = first
                if first == name:
                    value = self.tensors[name] = Value(tuple(Axis(s) for s in tensor.shape), (name,))
                    if not tensor.is_floating_point() and not tensor.is_complex():
                        pin(value.axes, "a buffer of integers or truth values", name.rpartition(".")[0])

    def _placeholders(self, program: ExportedProgram) -> dict[str, Value | None]:
        values: dict[str, Value | None] = {}
        tensors = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
        for spec in program.graph_signature.input_specs:
            name = getattr(spec.arg, "name", "")
            tensor = tensors.get(name)
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target is not None:
                values[name] = self.tensors[self._first_name[plain(spec.target)]]
            elif isinstance(tensor, Tensor):
                reason = "model input" if spec.kind is InputKind.USER_INPUT else "a constant of the graph"
                values[name] = self.opaque(tensor.shape, reason, "")
            else:
                values[name] = None
        return values

    def _run(self, graph: GraphModule, inputs: dict[str, Value | None], is_root: bool = False) -> Any:
        environment: dict[Node, Any] = {}
        result: Any = None
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                environment[node] = inputs.get(node.name)
            elif node.op == "get_attr":
                environment[node] = self._attribute(graph, node)
            elif node.op == "output":
                result = resolved(node.args[0], environment)
            elif node.op == "call_function":
                environment[node] = self._call(node, environment, graph)
            made = node.meta.get("val")
            if isinstance(made, Tensor) and not isinstance(environment.get(node), Value):
                environment[node] = self.opaque(made.shape, "a tensor of unknown origin", module_of(node))
            if NAME in node.meta and isinstance(environment.get(node), Value):
                self.named[node.meta[NAME]] = environment[node]
                self.places[node.meta[NAME]] = module_of(node)
        if is_root:
            for value in flat(result):
                pin(value.axes, "model output", "")
        return result

    def _attribute(self, graph: GraphModule, node: Node) -> Any:
        found: Any = operator.attrgetter(str(node.target))(graph)
        return self.opaque(found.shape, "a constant of the graph", "") if isinstance(found, Tensor) else found

    def _call(self, node: Node, environment: dict[Node, Any], graph: GraphModule) -> Any:
        if node.target is operator.getitem:
            container, position = resolved(node.args, environment)
            return container[position] if isinstance(container, tuple | list) else None
        arguments = resolved(with_sizes(node), environment)
        if not isinstance(node.target, torch._ops.OpOverload):
            inner = [a for a in arguments if isinstance(a, GraphModule)]
            if len(inner) == 1 and str(node.target).startswith(TRANSPARENT):
                return self._inner(inner[0], arguments[arguments.index(inner[0]) + 1 :])
        call = call_of(node, arguments, resolved(node.kwargs, environment))
        reason = refusal_of(node, self._leaves)
        name = call.name if call.name in RULES else call.name.removesuffix("_")
        if reason is not None:
            return self.refuse(call, reason)
        known = RULES.get(name)
        if known is None and isinstance(node.target, torch._ops.OpOverload):
            known = RULES["pointwise"] if torch.Tag.pointwise in node.target.tags else None
        if known is None:
            return self.refuse(call, f"the operator {call.name!r} is not understood")
        call.name = name
        try:
            result = known(self, call)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            _logger.debug("rule of %s in %s", call.name, call.module, exc_info=error)
            return self.refuse(call, f"the operator {call.name!r} is used in a way that is not understood")
        self._numbers(call)
        return result if fits(result, call) else self.refuse(call, f"the shape of {call.name!r} is not understood")

    def _inner(self, graph: GraphModule, operands: Sequence[Any]) -> Any:
        names = [n.name for n in graph.graph.nodes if n.op == "placeholder"]
        result = self._run(graph, dict(zip(names, operands)))
        return tuple(result) if isinstance(result, list) else result

    def _numbers(self, call: Call) -> None:
        """Sizes among the arguments that no rule took for the size of an axis must not change."""
        for number in integers(list(call.arguments.values())):
            if is_size(number) and id(number) not in call.used:
                self.fix(number.expression, call.module, f"its size is an argument of {call.name!r}")

    def value_of(self, name: str) -> Value | None:
        """The axes of a parameter or buffer by any of its names."""
        return self.tensors.get(self._first_name.get(name, ""))

    @property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """All names of each tensor by the first."""
        names: dict[str, list[str]] = {}
        for name, first in self._first_name.items():
            names.setdefault(first, []).append(name)
        return {first: tuple(all_names) for first, all_names in names.items()}

    # What rules say

    def opaque(self, shape: Sequence[int], reason: str, module: str) -> Value:
        """A tensor all of whose axes are pinned."""
        axes = tuple(Axis(s) for s in shape)
        pin(axes, reason, module)
        return Value(axes)

    def refuse(self, call: Call, reason: str) -> Value | tuple[Value | None, ...]:
        """Pin all that an operator touches."""
        for value in call.values:
            pin(value.axes, reason, call.module)
        outputs = tuple(None if o is None else self.opaque(o.shape, reason, call.module) for o in call.outputs)
        self._numbers(call)
        return outputs if call.several else (outputs[0] or Value(()))

    def size(self, call: Call, axis: Axis, given: int, reason: str) -> None:
        """Say that an operator was told the size of an axis; a number of unknown origin pins it at once."""
        if axis.size == 1:
            return
        call.used.add(id(given))
        expression = expression_of(given)
        if isinstance(expression, Constant):
            pin(axis, reason, call.module)
        else:
            computed = reason if isinstance(expression, AttributeOf) else f"{call.name!r} computes its size from others"
            self.constraints.append(Constraint(axis, expression, call.module, computed))

    def fix(self, expression: Expression, module: str, reason: str) -> None:
        """Say that nothing on which this number depends may change."""
        if not isinstance(expression, Constant):
            self.constraints.append(Constraint(None, expression, module, reason))

    def use(self, call: Call, value: Value | None, axes: Sequence[Axis], role: Role) -> None:
        """Say what an operator does with axes of a parameter."""
        if value is not None and value.origin:
            for axis in axes:
                self.uses.append(Use(value.origin, axis, role, call.module, call.name, len(self.uses)))
            if role == "consumes" and not value.zeros:
                pin(axes, "what reads it is computed from parameters, but not zero where they are", call.module)

    def average(self, call: Call, axes: Iterable[Axis]) -> None:
        """Pin what a norm averages over, unless the user accepts that."""
        axes = list(axes)
        if self.inexact_norms:
            self.averaged += axes
        else:
            pin(axes, f"{call.name!r} averages over it", call.module)

    def unify(self, call: Call, first: Axis, second: Axis) -> None:
        """Declare two axes to be the same."""
        unify(first, second, call.module)


def fresh(sizes: Iterable[int], reason: str, module: str) -> list[Axis]:
    """New axes that nothing may change."""
    axes = [Axis(s) for s in sizes]
    pin(axes, reason, module)
    return axes
