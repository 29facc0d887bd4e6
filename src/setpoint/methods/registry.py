"""Methods by their short names; other packages join through the entry point group `setpoint.methods`."""

from __future__ import annotations

from importlib.metadata import entry_points

from setpoint.methods.base import Method
from setpoint.methods.evolutionary import SparseEvolutionaryTraining
from setpoint.methods.gsp import GroupedSparseProjection
from setpoint.methods.hoyer import DeepHoyer
from setpoint.methods.l0 import ConstrainedL0
from setpoint.methods.magnitude import Magnitude
from setpoint.methods.rigl import RigL
from setpoint.methods.static import Static
from setpoint.methods.wgsef import GroupSparseEnvelope

_METHODS: dict[str, type[Method]] = {
    "magnitude": Magnitude,
    "gsp": GroupedSparseProjection,
    "wgsef": GroupSparseEnvelope,
    "hoyer": DeepHoyer,
    "l0": ConstrainedL0,
    "static": Static,
    "set": SparseEvolutionaryTraining,
    "rigl": RigL,
}


def method_names() -> tuple[str, ...]:
    """The short names that `make_method` knows."""
    return (*_METHODS, *(e.name for e in entry_points(group="setpoint.methods")))


def make_method(method: str | Method, **options: object) -> Method:
    """Build a method by its short name, or pass an instance through.

    Raises:
        ValueError: for an unknown name.
        TypeError: for options that the method does not have.
    """
    if isinstance(method, Method):
        return method
    if method in _METHODS:
        return _METHODS[method](**options)
    for entry in entry_points(group="setpoint.methods", name=method):
        made = entry.load()(**options)
        if isinstance(made, Method):
            return made
    raise ValueError(f"method={method!r} is none of {', '.join(method_names())}")
