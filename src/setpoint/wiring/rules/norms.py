"""Normalisation layers."""

from __future__ import annotations

from setpoint.wiring.axes import Axis, product
from setpoint.wiring.calls import Call, Value
from setpoint.wiring.walk import Walk, rule


def _result(call: Call, value: Value) -> Value | tuple[Value | None, ...]:
    result = Value(value.axes)
    return (result, *(None for _ in call.outputs[1:])) if call.several else result


@rule("batch_norm", "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit", "instance_norm",
      "_native_batch_norm_legit_no_training", "miopen_batch_norm")  # fmt: skip
def channelwise(walk: Walk, call: Call) -> Value | tuple[Value | None, ...]:
    """Scale, shift and running statistics belong to their channel."""
    value, *others = call.values
    for other in others:
        walk.unify(call, value.axes[1], other.axes[0])
        walk.use(call, other, other.axes, "scales")
    return _result(call, value)


@rule("layer_norm", "native_layer_norm", "rms_norm")
def over_last(walk: Walk, call: Call) -> Value | tuple[Value | None, ...]:
    """Averages over the last axes."""
    value, *others = call.values
    shape = call["normalized_shape"]
    axes = value.axes[len(value.axes) - len(shape) :]
    walk.average(call, axes)
    for axis, given in zip(axes, shape):
        walk.size(call, axis, given, f"size written as a number in {call.name!r}")
    for other in others:
        for axis, own in zip(axes, other.axes):
            walk.unify(call, axis, own)
        walk.use(call, other, other.axes, "scales")
    return _result(call, value)


@rule("group_norm", "native_group_norm")
def over_groups(walk: Walk, call: Call) -> Value | tuple[Value | None, ...]:
    """Averages over the channels of each group; the groups stand for themselves."""
    value, *others = call.values
    given = call.arguments["num_groups"] if call.name == "group_norm" else call["group"]
    groups, inside = Axis(given), Axis(value.axes[1].size // given)
    walk.average(call, [inside])
    walk.size(call, groups, given, f"number of groups written as a number in {call.name!r}")
    walk.unify(call, value.axes[1], product([groups, inside]))
    for other in others:
        walk.unify(call, value.axes[1], other.axes[0])
        walk.use(call, other, other.axes, "scales")
    return _result(call, value)
