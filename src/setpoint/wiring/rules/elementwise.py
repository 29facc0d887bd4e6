"""Operators that treat each element alone, and those that make new tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from setpoint.wiring.axes import Axis, pin
from setpoint.wiring.calls import Call, Role, Value
from setpoint.wiring.rules.zeros import keeps_zeros, pin_divisors
from setpoint.wiring.walk import Walk, rule

_ADDING = {"add", "sub", "rsub", "copy"}


def broadcast(walk: Walk, call: Call, values: Sequence[Value], rank: int | None = None) -> list[Axis]:
    """The axes of the result of an element-wise operator; axes of one position are stretched."""
    rank = max((len(v.axes) for v in values), default=0) if rank is None else rank
    result: list[Axis] = []
    for k in range(rank, 0, -1):
        here = [v.axes[-k] for v in values if len(v.axes) >= k]
        wide = [axis for axis in here if axis.size != 1]
        for axis in wide[1:]:
            walk.unify(call, wide[0], axis)
        result.append((wide or here or [Axis(1)])[0])
    return result


def merged(axes: Iterable[Axis], values: Sequence[Value]) -> Value:
    """What was computed from several tensors: from parameters alone, if all of them were."""
    origin = tuple(dict.fromkeys(name for v in values for name in v.origin))
    return Value(tuple(axes), origin if all(v.origin for v in values) else (), all(v.zeros for v in values))


@rule("pointwise", "copy", "lerp", "masked_fill", "where")
def pointwise(walk: Walk, call: Call) -> Value:
    """Broadcasting, with any number of tensors."""
    values = call.values
    pin_divisors(walk, call)
    axes = broadcast(walk, call, values, len(call.shape) if call.outputs[0] is not None else None)
    if len(values) > 1 and not all(v.origin for v in values):
        role: Role = "produces" if call.name in _ADDING else "scales"
        for value in values:
            walk.use(call, value, [a for a in value.axes if a.size != 1], role)
    return replace(merged(axes, values), zeros=keeps_zeros(call))


@rule(
    "_assert_tensor_metadata", "_autocast_to_full_precision", "_autocast_to_reduced_precision", "_to_copy", "alias",
    "alpha_dropout", "bernoulli", "bfloat16", "celu", "clone", "contiguous", "cpu", "cuda", "dequantize", "detach",
    "double", "dropout", "elu", "empty_like", "feature_alpha_dropout", "feature_dropout", "fill", "float", "full_like",
    "gelu", "half", "hardswish", "hardtanh", "lift_fresh", "lift_fresh_copy", "log_sigmoid", "logsigmoid", "mish",
    "nan_to_num", "native_dropout", "ones_like", "rand_like", "randn_like", "relu6", "requires_grad", "rrelu",
    "rrelu_with_noise", "selu", "silu", "softplus", "threshold", "to", "type_as", "zero", "zeros_like",
)  # fmt: skip
def unary(walk: Walk, call: Call) -> Value | tuple[Value | None, ...]:
    """The same axes again."""
    value = replace(call.first, zeros=keeps_zeros(call))
    if call.several:
        return tuple(None if o is None else value for o in call.outputs)
    return value


@rule("prelu", "_prelu_kernel")
def prelu(walk: Walk, call: Call) -> Value:
    """One slope for each channel, or one for all."""
    value, weight = call.values
    if len(value.axes) > 1 and weight.axes and weight.axes[0].size != 1:
        channels = value.axes[1]
        walk.unify(call, channels, weight.axes[-1] if call.name == "prelu" else weight.axes[1])
        walk.use(call, weight, [a for a in weight.axes if a.size != 1], "scales")
    return value


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "scalar_tensor")
def constant(walk: Walk, call: Call) -> Value:
    """A tensor of one value, whose size was told."""
    axes = [Axis(s) for s in call.shape]
    for axis, given in zip(axes, call.arguments.get("size") or ()):
        walk.size(call, axis, given, f"size written as a number in {call.name!r}")
    return Value(tuple(axes))


@rule("arange", "rand", "randn", "randint", "randperm", "linspace", "eye", "hann_window")
def positions(walk: Walk, call: Call) -> Value:
    """A tensor whose entries depend on their positions."""
    return walk.opaque(call.shape, f"positions are numbered by {call.name!r}", call.module)


@rule("cumsum", "cumprod", "logcumsumexp", "flip", "roll", "sort", "argsort", "topk", "renorm", "softmax", "_softmax",
      "log_softmax", "_log_softmax", "softmin", "cummax", "cummin", "kthvalue", "_safe_softmax")  # fmt: skip
def along(walk: Walk, call: Call) -> Value | tuple[Value | None, ...]:
    """Operators that mix the positions of one axis and keep its length (or, for `topk`, cut it)."""
    value = call.first
    name = "dims" if "dims" in call.arguments else "dim"
    dims = call.dims(name)
    pin([value.axes[d] for d in dims], f"{call.name!r} runs along it", call.module)
    axes = [Axis(call.shape[d]) if d in dims else a for d, a in enumerate(value.axes)]
    pin([axes[d] for d in dims], f"{call.name!r} runs along it", call.module)
    result = replace(value.moved(axes), zeros=keeps_zeros(call))
    return tuple(result for _ in call.outputs) if call.several else result
