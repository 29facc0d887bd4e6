"""What may stay, in whole units."""

from __future__ import annotations

import math


def whole_units(wanted: float, everything: float, *, within: bool) -> int:
    """How many units stay where `wanted` are asked for.

    Args:
        wanted: how many, as it follows from a fraction; may be negative where more than all units are asked to go.
        everything: how many there are, in whose rounding errors a whole number or a half is still one.
        within: never more than are wanted. Otherwise the nearest number, of two as near the smaller.
    """
    slack = max(1e-9, everything * 2.0**-50)
    return math.floor(wanted + slack) if within else math.ceil(wanted - 0.5 - slack)


def achievable(kept: float, *, total: float, fixed: float, unit: float, floor: int, within: bool) -> float | None:
    """The cost of the whole units that stay, where all cost the same; None where the floor keeps more.

    Args:
        kept: the cost that is to stay.
        total: of everything.
        fixed: of what always stays and belongs to no unit.
        unit: cost of one unit.
        floor: units that always stay. Where they are the count nearest to what is asked for, they are what is kept.
        within: whether `kept` must not be exceeded.
    """
    everything = (total - fixed) / unit
    wanted = (kept - fixed) / unit
    count = whole_units(wanted, total / unit, within=within)
    if count < floor:
        if within or floor > math.ceil(wanted - 1e-9):
            return None
        count = floor
    return fixed + unit * min(count, round(everything))
