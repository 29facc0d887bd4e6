"""Options as they are given: read as plain numbers, switches and names, or refused by a sentence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction
from types import NoneType
from typing import Any, get_args, get_type_hints

import numpy as np
from torch import Tensor

from setpoint.suggestions import did_you_mean


def plain(value: Any) -> Any:
    """A number of numpy, torch, decimal or fractions as Python's own; anything else as it is.

    Short floats are the decimals that they are written as: a float32 of 0.7 is 0.7, not 0.699999988.
    """
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_meta:
        value = value.detach().cpu()
        value = (value.double() if value.dtype.itemsize < 4 and value.is_floating_point() else value).numpy()[()]
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, np.floating):
        return float(str(value))
    if isinstance(value, np.bool_ | np.integer):
        return value.item()
    return float(value) if isinstance(value, Decimal | Fraction) else value


def number(name: str, value: Any, such_as: str = "") -> int | float:
    """A number as it was given, an int or a float.

    Args:
        name: of the option, for the message.
        value: what was given.
        such_as: an example, for the message.

    Raises:
        ValueError: for a switch, a text, or anything else that is no number.
    """
    found = plain(value)
    if isinstance(found, bool) or not isinstance(found, int | float):
        example = f", such as {such_as}" if such_as else ""
        raise ValueError(f"{name}={value!r} must be a number{example}; {_kind(value)} was given")
    return found


def whole_number(name: str, value: Any, least: int, what: str = "a whole number") -> int:
    """A whole number of at least `least`.

    Raises:
        ValueError: for anything else, a float such as 2.0 as well.
    """
    found = plain(value)
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        raise ValueError(f"{name}={value!r} must be {what} >= {least} (an int)")
    return found


def choice(name: str, value: Any, possible: Iterable[str]) -> None:
    """Refuse a name that is none of those possible.

    Raises:
        ValueError: with those that are, and the nearest.
    """
    names = tuple(possible)
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{name}={value!r} is none of {', '.join(names)}{did_you_mean(value, names)}")


def read_fields(owner: Any, label: str) -> None:
    """Read the fields of a frozen dataclass that are numbers or switches by their annotations, in place.

    Ranges are for the owner to check; texts and mappings are left as they are.

    Args:
        owner: an instance, in its `__post_init__`.
        label: what the fields are of, for the message.

    Raises:
        ValueError: naming the field, for a value of another kind.
    """
    for name, kinds in _kinds(type(owner)).items():
        value = getattr(owner, name)
        if value is not None or NoneType not in kinds:
            object.__setattr__(owner, name, _read(f"{label} {name}".strip(), value, kinds))


def _read(name: str, value: Any, kinds: set[type]) -> Any:
    if bool in kinds:
        if not isinstance(plain(value), bool):
            raise ValueError(f"{name}={value!r} must be True or False")
        return plain(value)
    found = number(name, value)
    if float not in kinds and not isinstance(found, int):
        raise ValueError(f"{name}={value!r} must be a whole number (an int)")
    try:
        # Not every function takes ints of any size.
        return found if int in kinds or abs(found) < 2**53 else float(found)
    except OverflowError:
        raise ValueError(f"{name}={value!r} is too large a number") from None


def _kinds(owner: type) -> dict[str, set[type]]:
    """By field, the kinds of numbers and switches that it takes; fields that take anything else are left out."""
    try:
        hints = get_type_hints(owner)
    except NameError:  # of a class in a function, whose names are not to be found from here
        return {}
    found = {f.name: set(get_args(hints[f.name])) or {hints[f.name]} for f in fields(owner)}
    return {name: kinds for name, kinds in found.items() if kinds - {NoneType} <= {bool, int, float}}


def _kind(value: Any) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
