"""Which run holds a parameter: two would undo one another's zeros."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Protocol, cast

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from setpoint.units import Layer

_HELD = WeakIdKeyDictionary()


class Owner(Protocol):
    """A run, as those see it who are handed its model."""

    @property
    def phase(self) -> str:
        """Where it stands."""

    def check(self, what: str) -> None:
        """Warn if the model is not what the run was to make of it, given what is done with it."""


def claim(owner: Owner, layers: Sequence[Layer]) -> None:
    """Take layers for one run.

    Raises:
        ValueError: if another run that is still at work holds one of them; none is taken then.
    """
    if any(_is_held(layer) for layer in layers):
        # A run that nobody refers to any more may only wait for the collector: it and its optimizer form a cycle.
        gc.collect()
    for layer in layers:
        if _is_held(layer):
            raise ValueError(
                f"parameter {layer.name!r} is already held by another Sparsifier: leave it out by exclude=, or call "
                "remove() on the other first"
            )
    for layer in layers:
        for part in layer.parts:
            _HELD[part.parameter] = weakref.ref(owner)


def _is_held(layer: Layer) -> bool:
    others = [_HELD.get(part.parameter) for part in layer.parts]  # type: ignore[no-untyped-call]
    return any(other is not None and other() is not None for other in others)


def release(layers: Sequence[Layer]) -> None:
    """Let go of layers that a run holds."""
    for layer in layers:
        for part in layer.parts:
            _HELD.pop(part.parameter, None)  # type: ignore[no-untyped-call]


def holders(model: nn.Module) -> list[Owner]:
    """The runs that hold parameters of a model."""
    references = [_HELD.get(parameter) for parameter in model.parameters()]  # type: ignore[no-untyped-call]
    found = {id(owner): owner for reference in references if reference is not None and (owner := reference())}
    return cast("list[Owner]", list(found.values()))
