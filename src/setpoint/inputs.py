"""What a model is called with, as users give it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def call_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, by position and by name.

    Args:
        example_inputs: a tensor (or whatever else is the only argument), a tuple of arguments, or a mapping of
            arguments by name.
    """
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,), {}
