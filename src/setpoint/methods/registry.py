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
from setpoint.suggestions import did_you_mean

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
        ValueError: for an unknown name, for what is no method, and for one that could not run.
        TypeError: for options that the method does not have.
    """
    if isinstance(method, type) and issubclass(method, Method):
        raise ValueError(f"method={method.__name__} is a class: pass an instance of it, {method.__name__}()")
    made = method if isinstance(method, Method) else _named(method, options)
    if made is method and options:
        raise TypeError(f"method={method!r} is an instance with options of its own; {', '.join(options)} came on top")
    if made.sees_gradients and not made.always_sparse:
        raise ValueError(
            f"method {made.name!r} asks for the gradients of what is gone (sees_gradients), which only a method that "
            "is sparse from the first step on is given: set always_sparse = True as well"
        )
    return made


def _named(name: object, options: dict[str, object]) -> Method:
    if not isinstance(name, str):
        possible = ", ".join(method_names())
        raise ValueError(f"method={name!r} must be a name or an instance of setpoint.methods.Method; names: {possible}")
    if name in _METHODS:
        return _METHODS[name](**options)
    for entry in entry_points(group="setpoint.methods", name=name):
        made = entry.load()(**options)
        if not isinstance(made, Method):
            raise ValueError(f"method={name!r}: {entry.value} made a {type(made).__name__}, which is no method")
        return made
    known = method_names()
    raise ValueError(f"method={name!r} is none of {', '.join(known)}{did_you_mean(name, known)}")
