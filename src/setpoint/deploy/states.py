"""What modules and other objects hold, read and set past any code of their own."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from setpoint.deploy.names import ObstacleError

T = TypeVar("T")

KEPT = frozenset(vars(nn.Module())) | {"_compiled_call_impl", "_is_torch_compile"}
"""What torch keeps of every module; all else are attributes. What a module was compiled to is made anew."""

HOOKS = sorted(name for name in KEPT if name.endswith("_hooks"))
"""Those of them that hold a module's hooks."""


def state_of(value: object) -> dict[str, Any]:
    """What an object of a checked class holds, in its dictionary and its slots."""
    state = dict(object.__getattribute__(value, "__dict__")) if hasattr(value, "__dict__") else {}
    unset = object()
    slots = {name: getattr(value, name, unset) for name in _slots(type(value))}
    return state | {name: entry for name, entry in slots.items() if entry is not unset}


def fill(value: object, state: Mapping[str, Any]) -> None:
    """Give an object of a checked class its state, past whatever it does on assignments."""
    slots = _slots(type(value))
    for name, entry in state.items():
        if name in slots:
            slots[name].__set__(value, entry)
        else:
            object.__getattribute__(value, "__dict__")[name] = entry


def _slots(cls: type) -> dict[str, types.MemberDescriptorType]:
    return {
        name: slot
        for base in reversed(cls.__mro__)
        for name, slot in vars(base).items()
        if isinstance(slot, types.MemberDescriptorType) and not name.startswith("__")
    }


def settable(attributes: Mapping[str, T]) -> Mapping[str, T]:
    """Attributes of which none is Python's own."""
    for name in attributes:
        if not isinstance(name, str) or (name.startswith("__") and name.endswith("__")):
            raise ObstacleError(f"its attribute {name!r} is Python's own")
    return attributes
