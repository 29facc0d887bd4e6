"""Which run holds a parameter: two would undo one another's zeros."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

from torch.utils.weak import WeakIdKeyDictionary

from setpoint.units import Layer

_HELD = WeakIdKeyDictionary()


def claim(owner: object, layers: Sequence[Layer]) -> None:
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
        _HELD[layer.parameter] = weakref.ref(owner)


def _is_held(layer: Layer) -> bool:
    other = _HELD.get(layer.parameter)  # type: ignore[no-untyped-call]
    return other is not None and other() is not None


def release(layers: Sequence[Layer]) -> None:
    """Let go of layers that a run holds."""
    for layer in layers:
        _HELD.pop(layer.parameter, None)  # type: ignore[no-untyped-call]
