"""What a mistyped name was probably meant to be."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: object, possible: Iterable[str]) -> str:
    """A clause for the end of an error message, such as `; did you mean 'global'?`.

    Args:
        name: what was given; anything but a string resembles nothing.
        possible: the names that are known.

    Returns:
        The clause with the name that is nearest, empty if none is near.
    """
    names = {known.lower(): known for known in possible}
    found = get_close_matches(name.lower(), names, n=1) if isinstance(name, str) else []
    return f"; did you mean {names[found[0]]!r}?" if found else ""
