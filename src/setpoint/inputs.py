"""What a model is called with, as users give it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# Where the lines of a traceback are of no help to users.
_INTERNAL = (Path(torch.__file__).parent, Path(__file__).parent)


def call_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, by position and by name.

    Args:
        example_inputs: a tensor (or whatever else is the only argument, such as a list), a tuple of arguments, or a
            mapping of arguments by name.
    """
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,), {}


def failure(error: BaseException, example_inputs: Any) -> str:
    """Why a call of a model on example inputs failed, in a line: the error's first one, and where it arose."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_internal(f.filename)]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}, in {frames[-1].name})" if frames else ""
    return f"{line}{where}{_hint(error, example_inputs)}"


@contextmanager
def running_on(example_inputs: Any) -> Iterator[None]:
    """Say what is wrong in a sentence where a model cannot be run on example inputs.

    Raises:
        ValueError: for anything that is raised within.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"the model cannot be run on example_inputs: {failure(error, example_inputs)}") from error


def _is_internal(filename: str) -> bool:
    return filename.startswith("<") or any(folder in Path(filename).parents for folder in _INTERNAL)


def _hint(error: BaseException, example_inputs: Any) -> str:
    if "Cache" in str(error):
        return " (pass use_cache=False among the inputs)"
    if isinstance(example_inputs, list):
        return " (a list is the only argument: several are a tuple, or a dict of them by name)"
    if example_inputs is None:
        return " (example_inputs is None: a tensor, a tuple of arguments, or a dict of them by name is possible)"
    return ""
