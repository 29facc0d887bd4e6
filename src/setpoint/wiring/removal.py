"""Taking residual branches out of a model.

The forward passes around the sum stay the user's own, and run on the zeros that stand-ins answer for the modules that
made the branch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from setpoint.wiring.stand_ins import StandIn


@dataclass(frozen=True, eq=False)
class Branch:
    """A residual branch: the f of x + f(x).

    Attributes:
        name: the path of a module.
        parameters: first names of its own parameters.
        last: those of the map that makes its result: with them zero it is zero, and in proportion to them where
            nothing but dropout and the like follows.
        modules: what takes the places of its modules when it is taken out.
    """

    name: str
    parameters: tuple[str, ...]
    last: tuple[str, ...]
    modules: tuple[StandIn, ...]


def take_out(model: nn.Module, branches: Sequence[Branch]) -> None:
    """Put stand-ins in the places of the branches' modules, in place."""
    _swap(model, {stand_in.path: stand_in for branch in branches for stand_in in branch.modules})


@contextmanager
def without(model: nn.Module, branches: Sequence[Branch]) -> Iterator[None]:
    """The model without some branches, for a while."""
    swapped = _swap(model, {stand_in.path: stand_in for branch in branches for stand_in in branch.modules})
    try:
        yield
    finally:
        for parent, name, module in swapped:
            parent._modules[name] = module


def _swap(model: nn.Module, stand_ins: Mapping[str, StandIn]) -> list[tuple[nn.Module, str, nn.Module]]:
    modules = {model.get_submodule(path): stand_in for path, stand_in in stand_ins.items()}
    places = [(p, name, m) for p in model.modules() for name, m in p._modules.items() if m in modules]
    built = {module: stand_in.built(module) for module, stand_in in modules.items()}
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    for parent, name, module in places:
        if module is not None:
            parent._modules[name] = built[module]
            swapped.append((parent, name, module))
    return swapped
