"""What stands in an exported graph: tensors with their axes, operators with their arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Node

from setpoint.wiring.axes import Axis
from setpoint.wiring.leaves import opaque_reason
from setpoint.wiring.sizes import Expression, Size
from setpoint.wiring.watch import SIZES, WITHIN, plain

Role = Literal["produces", "consumes", "scales"]


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor in the graph.

    Attributes:
        axes: one for each dimension.
        origin: the parameters and buffers that it was computed from, if it was computed from nothing else.
        zeros: whether it is zero then where those are.
    """

    axes: tuple[Axis, ...]
    origin: tuple[str, ...] = ()
    zeros: bool = True

    def moved(self, axes: Iterable[Axis]) -> Value:
        """The same tensor after a view or an element-wise operation."""
        return Value(tuple(axes), self.origin, self.zeros)

    def at(self, *dims: int) -> list[Axis]:
        """The axes at these dimensions, which may be negative."""
        return [self.axes[d] for d in dims]


@dataclass(frozen=True)
class Use:
    """One operator's reading of one axis of a tensor that was computed from parameters alone."""

    tensors: tuple[str, ...]
    axis: Axis
    role: Role
    module: str
    operator: str
    order: int


@dataclass(frozen=True)
class Constraint:
    """What an operator was told the size of an axis to be; `axis` is None for a number that is no size."""

    axis: Axis | None
    expression: Expression
    module: str
    reason: str


@dataclass
class Call:
    """One operator of the graph: its arguments by their names in the operator's schema, tensors as values."""

    name: str
    arguments: dict[str, Any]
    outputs: tuple[Tensor | None, ...]
    module: str
    several: bool
    used: set[int] = field(default_factory=set)

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    @property
    def values(self) -> list[Value]:
        """All tensors among the arguments, those in lists included."""
        found: list[Value] = []
        for argument in self.arguments.values():
            found += [a for a in (argument if isinstance(argument, list | tuple) else [argument]) if _is_value(a)]
        return found

    @property
    def first(self) -> Value:
        """The first argument, a tensor."""
        value = next(iter(self.arguments.values()))
        assert isinstance(value, Value)
        return value

    @property
    def shape(self) -> torch.Size:
        """Of the result."""
        output = self.outputs[0]
        assert output is not None
        return output.shape

    def dims(self, name: str, rank: int | None = None) -> list[int]:
        """An argument of one or more dimensions as a list of dimensions from 0 up; all if it is None or empty."""
        rank = len(self.first.axes) if rank is None else rank
        given = self.arguments.get(name)
        if given is None or (isinstance(given, list | tuple) and not given):
            return list(range(rank))
        return [int(d) % max(rank, 1) for d in (given if isinstance(given, list | tuple) else [given])]


def _is_value(argument: Any) -> bool:
    return isinstance(argument, Value)


def fits(result: Value | tuple[Value | None, ...] | None, call: Call) -> bool:
    """Whether a rule answered with axes of the sizes that the operator's results have."""
    answers = result if isinstance(result, tuple) else (result,)
    if len(answers) != len(call.outputs) or isinstance(result, tuple) != call.several:
        return False
    return all(
        output is None or (answer is not None and [a.size for a in answer.axes] == list(output.shape))
        for answer, output in zip(answers, call.outputs)
    )


def resolved(argument: Any, environment: dict[Node, Any]) -> Any:
    """An argument with what its nodes stand for."""
    if isinstance(argument, Node):
        return environment[argument]
    if isinstance(argument, list | tuple):
        return [resolved(a, environment) for a in argument]
    if isinstance(argument, dict):
        return {k: resolved(v, environment) for k, v in argument.items()}
    return argument


def flat(result: Any) -> Iterable[Value]:
    """All tensors in nested results."""
    if isinstance(result, Value):
        yield result
    elif isinstance(result, list | tuple):
        for r in result:
            yield from flat(r)


def with_sizes(node: Node) -> Any:
    """The arguments of a node, integers with their expressions where those are known."""
    noted = iter(node.meta.get(SIZES) or ())

    def put(argument: Any) -> Any:
        if isinstance(argument, bool):
            return argument
        if isinstance(argument, int):
            expression = next(noted, None)
            return argument if expression is None else Size(argument, expression, [])
        return [put(a) for a in argument] if isinstance(argument, list | tuple) else argument

    return [put(a) for a in node.args]


def call_of(node: Node, args: list[Any], kwargs: dict[str, Any]) -> Call:
    """The call that a node makes with these arguments."""
    arguments: dict[str, Any] = {}
    name = getattr(node.target, "__name__", str(node.target))
    if isinstance(node.target, torch._ops.OpOverload):
        name = node.target._schema.name.rpartition("::")[2]
        for i, parameter in enumerate(node.target._schema.arguments):
            default = parameter.default_value if parameter.has_default_value() else None
            arguments[parameter.name] = args[i] if i < len(args) else kwargs.get(parameter.name, default)
    else:
        arguments = {**{str(i): a for i, a in enumerate(args)}, **kwargs}
    made = node.meta.get("val")
    several = isinstance(made, list | tuple)
    outputs = [o if isinstance(o, Tensor) else None for o in (made if isinstance(made, list | tuple) else [made])]
    return Call(name, arguments, tuple(outputs), module_of(node), several)


def refusal_of(node: Node, leaves: Mapping[str, str]) -> str | None:
    """Why what an operator touches is refused, if it is called in a leaf; these are given by path with reasons."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = (plain(path) for path, _ in stack.values())
    return next((leaves[path] for path in paths if path in leaves), opaque_reason(node.meta.get(WITHIN, "")))


def module_of(node: Node) -> str:
    """The path of the module whose forward made this node."""
    stack = node.meta.get("nn_module_stack")
    return plain(list(stack.values())[-1][0]) if stack else ""
