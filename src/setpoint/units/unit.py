"""The units that a run can be asked for, by their names."""

from __future__ import annotations

import re
from difflib import get_close_matches
from numbers import Integral

Unit = str | tuple[int, int]

# Which axes of the canonical form are inside a unit of one parameter.
SLICES: dict[str, tuple[str, ...]] = {
    "weight": (),
    "row": ("input", "tap"),
    "column": ("output", "tap"),
    "kernel": ("tap",),
    "filter": ("input", "tap"),
}
# The kinds of groups whose units each name means; a layer is a residual branch, which is no group.
COUPLED: dict[str, tuple[str, ...]] = {"channel": ("channel",), "neuron": ("neuron",), "head": ("head",), "layer": ()}


def is_coupled(unit: object) -> bool:
    """Whether units of this name cross layers."""
    return isinstance(unit, str) and unit in COUPLED


def unit_name(unit: Unit) -> str:
    """The unit as it is written on the command line and in reports."""
    return unit if isinstance(unit, str) else f"{unit[0]}x{unit[1]}"


def check_unit(unit: Unit) -> None:
    """Refuse what names no unit.

    Raises:
        TypeError: for what is neither a name nor a pair of whole numbers.
        ValueError: for a name that no unit has, and for blocks and patterns of impossible sizes.
    """
    if isinstance(unit, str):
        if unit not in SLICES and unit not in COUPLED and sizes_of(unit) is None:
            raise ValueError(f"unit={unit!r} is none of {_possible()}{_meant(unit)}")
    elif not _is_pair(unit):
        raise TypeError(f"unit={unit!r} names no unit; possible: {_possible()}")
    sizes = sizes_of(unit)
    if sizes is not None and sizes[0] == "block" and min(sizes[1:]) < 1:
        raise ValueError(f"unit={unit} is no block: height and width must be at least 1")
    if sizes is not None and sizes[0] == "pattern" and not 0 < sizes[1] < sizes[2]:
        raise ValueError(f"unit='{sizes[1]}:{sizes[2]}' is no pattern: it takes 0 < N < M")


def sizes_of(unit: Unit) -> tuple[str, int, int] | None:
    """`"block"` with its height and width, or `"pattern"` with its N and M; None for units without sizes."""
    if not isinstance(unit, str):
        return "block", int(unit[0]), int(unit[1])
    if found := re.fullmatch(r"(\d+)x(\d+)", unit):
        return "block", int(found[1]), int(found[2])
    if found := re.fullmatch(r"(\d+):(\d+)", unit):
        return "pattern", int(found[1]), int(found[2])
    return None


def _is_pair(unit: object) -> bool:
    return (
        isinstance(unit, tuple)
        and len(unit) == 2
        and all(isinstance(size, Integral) and not isinstance(size, bool) for size in unit)
    )


def _possible() -> str:
    return f"{', '.join((*SLICES, *COUPLED))}, (height, width), 'N:M'"


def _meant(unit: str) -> str:
    near = get_close_matches(unit.lower(), (*SLICES, *COUPLED), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
