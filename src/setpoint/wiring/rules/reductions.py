"""Operators that reduce axes to one position or to none."""

from __future__ import annotations

from dataclasses import replace

from setpoint.wiring.axes import Axis, pin
from setpoint.wiring.calls import Call, Value
from setpoint.wiring.rules.zeros import keeps_zeros
from setpoint.wiring.walk import RULES, Walk, rule

_MOMENTS = {"mean", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm"}


@rule("mean", "sum", "amax", "amin", "prod", "var", "std", "var_mean", "std_mean", "logsumexp", "any", "all", "max",
      "min", "argmax", "argmin", "median", "nansum", "nanmean", "linalg_vector_norm", "norm", "aminmax",
      "count_nonzero")  # fmt: skip
def reduce(walk: Walk, call: Call) -> Value | tuple[Value | None, ...] | None:
    """Pin the reduced axes and keep the others.

    A mean, variance or norm that keeps the axis as one position is what norms are written with.
    """
    if call.name in ("max", "min") and call.arguments.get("other") is not None:
        return RULES["pointwise"](walk, call)
    value = call.first
    dims, keep = call.dims("dim"), bool(call.arguments.get("keepdim", False))
    reduced = [value.axes[d] for d in dims]
    if call.name in _MOMENTS and keep:
        walk.average(call, reduced)
    else:
        pin(reduced, f"{call.name!r} reduces it", call.module)
    axes = tuple(Axis(1) if d in dims else a for d, a in enumerate(value.axes) if keep or d not in dims)
    result = replace(value.moved(axes), zeros=keeps_zeros(call))
    return tuple(result for _ in call.outputs) if call.several else result
