"""Which run holds a parameter: two would undo one another's zeros."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol
from weakref import WeakValueDictionary

from torch import nn

from setpoint.units import Layer, plain_name


class Owner(Protocol):
    """A run, as those see it who are handed its model."""

    @property
    def model(self) -> nn.Module:
        """The model that it was built on, unwrapped."""

    @property
    def held(self) -> Mapping[str, nn.Parameter]:
        """The parameters that it makes sparse, by name."""

    @property
    def phase(self) -> str:
        """Where it stands."""

    def check(self, what: str) -> None:
        """Warn if the model is not what the run was to make of it, given what is done with it."""


# The runs at work, by their ids, in the order in which they began. Parameters are not referred to weakly anywhere:
# torch.utils.swap_tensors, by which modules may convert and load theirs, would refuse them.
_RUNS: WeakValueDictionary[int, Owner] = WeakValueDictionary()


def claim(owner: Owner, layers: Sequence[Layer]) -> None:
    """Take layers for one run.

    Raises:
        ValueError: if another run that is still at work holds one of them; none is taken then.
    """
    if _held(layers) is not None:
        # A run that nobody refers to any more may only wait for the collector: it and its optimizer form a cycle.
        gc.collect()
    if (layer := _held(layers)) is not None:
        raise ValueError(
            f"parameter {layer.name!r} is already held by another Sparsifier: leave it out by exclude=, or call "
            "remove() on the other first"
        )
    _RUNS[id(owner)] = owner


def _held(layers: Sequence[Layer]) -> Layer | None:
    """The first layer of which another run holds a parameter."""
    held = {id(parameter) for run in _RUNS.values() for parameter in run.held.values()}
    return next((layer for layer in layers if any(id(part.parameter) in held for part in layer.parts)), None)


def release(owner: Owner) -> None:
    """Let go of what a run holds."""
    _RUNS.pop(id(owner), None)


def holders(model: nn.Module) -> list[Owner]:
    """The runs that hold parameters of a model, or held those in whose places there are others now."""
    here = {id(parameter) for parameter in model.parameters()}
    return [run for run in _RUNS.values() if any(id(parameter) in here for parameter in _own_and_present(run))]


def _own_and_present(run: Owner) -> Iterator[nn.Parameter]:
    yield from run.held.values()
    for name, parameter in run.model.named_parameters(remove_duplicate=False):
        if plain_name(name) in run.held:
            yield parameter
