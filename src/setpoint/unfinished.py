"""Runs that are used, or forgotten, before their target was met."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

# Code that is nobody's own: this package, torch, which calls its hooks, and what dataclasses write.
_INNER = (str(Path(__file__).parent), str(Path(torch.__file__).parent), "<string>")


class UnfinishedRunWarning(UserWarning):
    """A model is used as if its run had met its target, and it has not."""


@dataclass
class Progress:
    """How far a run has come, for when nobody can ask the run any more.

    Attributes:
        steps: that it was told it would take.
        parameters: that it makes sparse.
        step: that it has taken.
        met: whether its target is met, or its owner has let go of it.
    """

    steps: int
    parameters: Sequence[Tensor]
    step: int = 0
    met: bool = False
    _versions: int = field(init=False)
    _built: tuple[str, int] = field(init=False)
    _said: set[tuple[str, str, int]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._versions = self._written()
        self._built = _place()

    @property
    def begun(self) -> bool:
        """Whether a step was taken, or somebody else has written to the parameters."""
        return self.step > 0 or self._written() != self._versions

    @property
    def words(self) -> str:
        """Where the run stands, and the likely cause."""
        where = f"step {self.step:,} of {self.steps:,}"
        if self.step == 0:
            return (
                f"{where}: no step of the optimizer that it hangs on was seen. If the model has been trained, it was "
                "by another optimizer: give the one whose step() moves the weights, such as a wrapper's outer one"
            )
        return (
            f"{where}. steps= counts optimizer steps: with gradient accumulation these are fewer than the batches, "
            "and a resumed or shorter training takes fewer; sparsifier.freeze() makes the cut now"
        )

    def watch(self, run: object) -> None:
        """Warn when a run is forgotten, at the latest when the program ends, unless its target is met by then."""
        weakref.finalize(run, self._forgotten)

    def warn(self, what: str) -> None:
        """Say once, to whoever called this package, that something was done before the target was met."""
        file, line = _place()
        if not self.met and self.begun and (what, file, line) not in self._said:
            self._said.add((what, file, line))
            self._say(f"{what} before the target of its run was met, at {self.words}", file, line)

    def _forgotten(self) -> None:
        if not self.met and self.begun:
            file, line = self._built
            self._say(
                f"the Sparsifier that was built here is gone before its target was met, at {self.words}", file, line
            )

    def _say(self, message: str, file: str, line: int) -> None:
        warnings.warn_explicit(message, UnfinishedRunWarning, file, line)

    def _written(self) -> int:
        return sum(parameter._version for parameter in self.parameters)


class CopiedRun:
    """In a copy of a model, stands where the model held its Sparsifier, which hangs on the original."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"no {name!r} here: this is a copy of a model that held a Sparsifier, which stays with the original and "
            "its optimizer; copy.deepcopy((model, optimizer, sparsifier)) copies the run"
        )


def warn_caller(message: str) -> None:
    """Warn whoever called this package, wherever in it the warning comes from."""
    file, line = _place()
    warnings.warn_explicit(message, UserWarning, file, line)


def _place() -> tuple[str, int]:
    """File and line of the innermost caller outside of this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INNER):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno
