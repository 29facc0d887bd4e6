"""The one root finder: where does a non-increasing function of one variable cross a level?

A top-k threshold, the multiplier of a grouped sparse projection and the one of an envelope's proximal map are
all such roots. The function's value is a sum over units; whoever calls decides how that sum is made.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

Evaluation = tuple[float, float | None]


@dataclass(frozen=True)
class Root:
    """Where the function crosses the level.

    Attributes:
        x: the point answered; the function is within the tolerance of the level there, or `x == upper`.
        value: the function at `x`.
        lower: largest point known to lie at or before the crossing (function >= level).
        upper: smallest point known to lie at or after the crossing (function <= level).
        converged: False when no floating-point number separates `lower` and `upper`: the function jumps over
            the level there, and `x` is `upper`.
        evaluations: how often the function was evaluated.
    """

    x: float
    value: float
    lower: float
    upper: float
    converged: bool
    evaluations: int


def monotone_root(
    function: Callable[[float], Evaluation],
    lower: float,
    upper: float,
    *,
    level: float = 0.0,
    tolerance: float = 0.0,
    start: float | None = None,
    max_evaluations: int = 200,
) -> Root:
    """Solve `function(x) = level` for a non-increasing function on `[lower, upper]`, `lower >= 0`.

    Newton steps where a slope is offered, the step stays inside the bracket, and the steps keep halving the error;
    otherwise bisection over the floating-point numbers themselves, which pins a step or a jump between two
    neighbouring numbers in some 64 evaluations whatever its scale.

    Args:
        function: maps x to (value, slope); the slope may be None.
        lower: a point where the function is at or above the level (not evaluated).
        upper: a point where the function is at or below the level (not evaluated).
        level: the value sought.
        tolerance: absolute; the search ends once the value is this near to the level.
        start: first point to evaluate, if it lies inside the bracket.
        max_evaluations: bound on the number of evaluations.

    Raises:
        ValueError: if the bracket is not one, or the function answers NaN.
    """
    if not (0.0 <= lower <= upper < math.inf):
        raise ValueError(f"the bracket [{lower}, {upper}] must satisfy 0 <= lower <= upper < inf")
    x = start if start is not None and lower < start < upper else _middle(lower, upper)
    value, evaluations, error = math.nan, 0, math.inf
    while lower < x < upper and evaluations < max_evaluations:
        value, slope = function(x)
        evaluations += 1
        if math.isnan(value):
            raise ValueError(f"the function is not a number at {x}")
        if abs(value - level) <= tolerance:
            return Root(x, value, lower, upper, True, evaluations)
        lower, upper = (x, upper) if value > level else (lower, x)
        halved, error = abs(value - level) <= 0.5 * error, abs(value - level)
        candidate = _newton(x, value - level, slope)
        x = candidate if halved and lower < candidate < upper else _middle(lower, upper)
    value, _ = function(upper)
    return Root(upper, value, lower, upper, abs(value - level) <= tolerance, evaluations + 1)


def _newton(x: float, excess: float, slope: float | None) -> float:
    if slope is None or not slope < 0.0:
        return math.nan
    return x - excess / slope


def _rank(x: float) -> int:
    """Position of a non-negative double among all non-negative doubles."""
    return int(struct.unpack("<q", struct.pack("<d", x + 0.0))[0])


def _middle(lower: float, upper: float) -> float:
    """The double halfway between two in their order, not in their value: a bracket from 0 needs no scale."""
    return float(struct.unpack("<d", struct.pack("<q", (_rank(lower) + _rank(upper)) // 2))[0])
