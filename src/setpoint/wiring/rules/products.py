"""Matrix products: linear layers, `matmul` and its relatives, `einsum`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from setpoint.wiring.axes import Axis, pin
from setpoint.wiring.calls import Call, Value
from setpoint.wiring.rules.elementwise import broadcast, merged
from setpoint.wiring.walk import Walk, rule


def contract(walk: Walk, call: Call, first: Value, mine: Axis, second: Value, theirs: Axis) -> None:
    """Two tensors are multiplied and summed over an axis: whose weights consume it, and what is pinned if no one's."""
    walk.unify(call, mine, theirs)
    if first.origin and second.origin:
        walk.use(call, first, [mine], "produces")
        walk.use(call, second, [theirs], "consumes")
    elif first.origin or second.origin:
        walk.use(call, first, [mine], "consumes")
        walk.use(call, second, [theirs], "consumes")
    else:
        pin(mine, "two activations are multiplied and summed over it", call.module)


@rule("linear")
def linear(walk: Walk, call: Call) -> Value:
    """(..., inputs) times (outputs, inputs)."""
    value, weight, bias = call["input"], call["weight"], call["bias"]
    contract(walk, call, value, value.axes[-1], weight, weight.axes[-1])
    walk.use(call, weight, weight.axes[:-1], "produces")
    axes = (*value.axes[:-1], *weight.axes[:-1])
    if bias is not None:
        broadcast(walk, call, [Value(axes), bias])
        walk.use(call, bias, bias.axes, "produces")
    return merged(axes, [v for v in (value, weight, bias) if v is not None])


def _matmul(walk: Walk, call: Call, first: Value, second: Value) -> Value:
    inner = second.axes[0] if len(second.axes) == 1 else second.axes[-2]
    contract(walk, call, first, first.axes[-1], second, inner)
    batch = broadcast(walk, call, [Value(first.axes[:-2]), Value(second.axes[:-2])])
    rows = list(first.axes[-2:-1])
    columns = list(second.axes[-1:]) if len(second.axes) > 1 else []
    if not (first.origin and second.origin):  # a product of parameters is a weight, whose reader says what it is for
        for value, own in ((first, rows), (second, columns)):
            walk.use(call, value, own, "produces")
            walk.use(call, value, value.axes[:-2], "scales")
    if not first.origin and not second.origin:
        walk.heads += [(a, call.module) for a in batch if a.size != 1]
        walk.mixed += [*rows, *columns]
    return merged((*batch, *rows, *columns), [first, second])


@rule("matmul", "mm", "bmm", "mv", "dot", "vdot", "inner")
def matmul(walk: Walk, call: Call) -> Value | tuple[Value | None, ...]:
    """Batched products with broadcasting."""
    first, second = call.values
    if call.name == "inner":
        return walk.refuse(call, "the operator 'inner' is not understood")
    return _matmul(walk, call, first, second)


@rule("addmm", "baddbmm", "addmv")
def addmm(walk: Walk, call: Call) -> Value:
    """A product plus a tensor."""
    bias, first, second = call.values
    result = _matmul(walk, call, first, second)
    walk.use(call, bias, [a for a in bias.axes if a.size != 1], "produces")
    return merged(broadcast(walk, call, [result, bias]), [bias, first, second])


@rule("bilinear")
def bilinear(walk: Walk, call: Call) -> Value:
    """(..., first) and (..., second) times (outputs, first, second)."""
    first, second, weight, bias = (call[name] for name in ("input1", "input2", "weight", "bias"))
    contract(walk, call, first, first.axes[-1], weight, weight.axes[1])
    contract(walk, call, second, second.axes[-1], weight, weight.axes[2])
    walk.use(call, weight, [weight.axes[0]], "produces")
    if bias is not None:
        walk.unify(call, weight.axes[0], bias.axes[0])
        walk.use(call, bias, bias.axes, "produces")
    return Value((*broadcast(walk, call, [Value(first.axes[:-1]), Value(second.axes[:-1])]), weight.axes[0]))


@rule("einsum")
def einsum(walk: Walk, call: Call) -> Value | tuple[Value | None, ...]:
    """One axis for each letter."""
    equation = str(call["equation"]).replace(" ", "")
    values = call.values
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    if not arrow or "." in equation or any(len(set(t)) != len(t) for t in terms):
        return walk.refuse(call, f"the equation {equation!r} is not understood")
    axes: dict[str, list[tuple[Value, Axis]]] = {}
    for value, term in zip(values, terms):
        for letter, axis in zip(term, value.axes):
            axes.setdefault(letter, []).append((value, axis))
    for letter, found in axes.items():
        _letter(walk, call, found, letter in output)
    wide = {letter: _widest(axis for _, axis in found) for letter, found in axes.items()}
    return merged((wide[letter] for letter in output), values)


def _letter(walk: Walk, call: Call, found: Sequence[tuple[Value, Axis]], kept: bool) -> None:
    found = [(v, a) for v, a in found if a.size != 1]
    for _, axis in found[1:]:
        walk.unify(call, found[0][1], axis)
    parameters = [(v, a) for v, a in found if v.origin]
    if kept:
        for value, axis in parameters:
            walk.use(call, value, [axis], "produces" if len(found) == 1 else "scales")
        if not parameters:
            walk.mixed.extend(axis for _, axis in found[:1] if len(found) == 1)
            walk.heads.extend((axis, call.module) for _, axis in found[:1] if len(found) > 1)
    elif len(found) == 2 and len(parameters) == 1:
        walk.use(call, parameters[0][0], [parameters[0][1]], "consumes")
    elif found:
        pin(found[0][1], f"{call['equation']!r} sums over it", call.module)


def _widest(axes: Iterable[Axis]) -> Axis:
    return max(axes, key=lambda axis: axis.size)
