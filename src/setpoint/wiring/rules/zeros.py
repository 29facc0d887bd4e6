"""Whether what is computed from parameters is zero where they are, as a unit is taken out by its zeros."""

from __future__ import annotations

from typing import Any

from setpoint.wiring.axes import pin
from setpoint.wiring.calls import Call, Value
from setpoint.wiring.walk import Walk

# Operators whose result is zero where their first argument is.
_KEEPING = {
    "_autocast_to_full_precision", "_autocast_to_reduced_precision", "_to_copy", "abs", "absolute", "alias", "amax",
    "amin", "argsort", "asin", "asinh", "atan", "atanh", "bernoulli", "bfloat16", "ceil", "celu", "clone",
    "contiguous", "cpu", "cuda", "cummax", "cummin", "cumprod", "cumsum", "deg2rad", "detach", "div", "divide",
    "double", "dropout", "elu", "erf", "expm1", "fix", "flip", "float", "floor", "floor_divide", "fmod", "frac",
    "gelu", "half", "hardshrink", "hardswish", "kthvalue", "lift_fresh", "lift_fresh_copy", "linalg_vector_norm",
    "log1p", "max", "mean", "median", "min", "mish", "nan_to_num", "nanmean", "nansum", "native_dropout", "neg",
    "negative", "norm", "prelu", "prod", "relu", "relu6", "remainder", "renorm", "requires_grad", "roll", "round",
    "selu", "sgn", "sign", "silu", "sin", "sinh", "softshrink", "softsign", "sort", "sqrt", "square", "std", "sum",
    "tan", "tanh", "to", "topk", "true_divide", "trunc", "type_as", "var", "zero", "zeros_like",
}  # fmt: skip
# Those whose result is zero where all their arguments are.
_SUMS = {"add", "copy", "hypot", "lerp", "masked_fill", "maximum", "minimum", "rsub", "sub", "subtract", "where"}
_INVERSES = {"reciprocal", "rsqrt", "log", "log2", "log10"}
_QUOTIENTS = {"div", "divide", "true_divide", "floor_divide", "fmod", "remainder"}


def keeps_zeros(call: Call) -> bool:
    """Whether an operator's result is zero where the parameters that it was computed from are."""
    values = call.values
    arguments = list(call.arguments.values())
    if call.name in ("mul", "multiply"):
        return any(v.zeros for v in values)
    if call.name in _SUMS:
        return all(v.zeros for v in values) and not any(_is_number(a) for a in arguments[: 2 + (call.name == "where")])
    if call.name == "pow":
        return bool(values[0].zeros and values[0] is arguments[0] and _exponent(call) > 0)
    if call.name.startswith("clamp"):
        low, high = call.arguments.get("min"), call.arguments.get("max")
        return bool(values[0].zeros and (low is None or low <= 0) and (high is None or high >= 0))
    return call.name in _KEEPING and values[0] is arguments[0] and values[0].zeros


def pin_divisors(walk: Walk, call: Call) -> None:
    """What is divided by must not become zero."""
    arguments = list(call.arguments.values())
    divisor = None
    if call.name in _INVERSES or (call.name == "pow" and _exponent(call) < 0):
        divisor = arguments[0]
    elif call.name in _QUOTIENTS:
        divisor = arguments[1]
    if isinstance(divisor, Value) and divisor.origin and divisor.zeros:
        pin(divisor.axes, f"{call.name!r} of its parameter's zeros is not finite", call.module)


def _exponent(call: Call) -> float:
    given = call.arguments.get("exponent")
    return float(given) if isinstance(given, int | float) else 0.0


def _is_number(argument: Any) -> bool:
    return isinstance(argument, int | float) and argument != 0
