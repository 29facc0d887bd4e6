"""The options of `setpoint train`, made from the fields of `TrainConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Optional, get_args, get_origin, get_type_hints

import yaml
from cyclopts import Parameter, Token

from setpoint.recipes.config import Option, TrainConfig

# Said on the command line in another way: --option key=value.
_APART = ("options",)


def _number(hint: Any, tokens: Sequence[Token]) -> int | float:
    """Read a number as it is written: 1 is a step, 1.0 a fraction of the run, and 1.5 no number of epochs."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        if float not in (*get_args(hint), hint):
            raise ValueError(f"{text!r} is no whole number") from None
    return float(text)


def _option(about: Field[Any], hint: Any) -> Any:
    """The type of an option: the field's, or None where it is not given."""
    if any(get_origin(member) is Mapping for member in get_args(hint)):
        hint = str  # a mapping can be said in a file only
    default = None if about.default in (MISSING, None, ()) else str(about.default)
    converter = _number if int in (hint, *get_args(hint)) else None
    return Annotated[
        Optional[hint],  # noqa: UP045
        Parameter(show_default=default, converter=converter, negative_iterable=()),
    ]


if TYPE_CHECKING:
    Given = TrainConfig
else:
    _hints = get_type_hints(TrainConfig)
    Given = make_dataclass(
        "Given",
        [
            (f.name, _option(f, _hints[f.name]), field(default=None))
            for f in fields(TrainConfig)
            if f.name not in _APART
        ],
        frozen=True,
        namespace={"__doc__": TrainConfig.__doc__, "__module__": __name__},
    )


def given_values(given: Given) -> dict[str, Any]:
    """The options that were given, and no others."""
    values = {f.name: getattr(given, f.name) for f in fields(given)}
    return {name: value for name, value in values.items() if value is not None}


def _scalar(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError):
        return text


def method_options(texts: Sequence[str]) -> dict[str, Option]:
    """Read `key=value` texts; values are numbers, true, false, or else text.

    Raises:
        ValueError: for a text without a key.
    """
    options: dict[str, Option] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ValueError(f"--option {text!r} must be a key and a value, such as vectors=row")
        read = _scalar(value)
        options[key.strip().replace("-", "_")] = read if isinstance(read, (bool, int, float)) else value
    return options


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Values of which those in `over` win; a method's options go with the method."""
    merged = {**base, **over}
    same = over.get("method", base.get("method")) == base.get("method")
    options = {**(base.get("options", {}) if same else {}), **over.get("options", {})}
    return {**merged, "options": options} if options else {k: v for k, v in merged.items() if k != "options"}
