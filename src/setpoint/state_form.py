"""Whether what is given as a run's state has the form of one, before any of it is taken."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from setpoint.options import whole_number
from setpoint.units import Layer


def check_form(state: object, keys: Collection[str]) -> None:
    """Refuse what is no state of a run at all.

    Args:
        state: what was given.
        keys: that a state has.

    Raises:
        TypeError: for what is no mapping.
        ValueError: naming what is missing.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"a run's state is what sparsifier.state_dict() returns, a dict, not {type(state).__name__}")
    if missing := [key for key in keys if key not in state]:
        raise ValueError(
            f"this is no state of a run, which sparsifier.state_dict() returns: {', '.join(missing)} is missing"
        )
    if not isinstance(state["asked"], Mapping) or not isinstance(state["asked"].get("layers"), Mapping):
        raise _unlike("asked", "what the run was told to do, with its layers")


def check_content(state: Mapping[str, Any], layers: Sequence[Layer], budgets: int, modules: Collection[str]) -> None:
    """Refuse a state of which a part cannot be taken.

    Args:
        state: has the form of one, and is of a run that was told to do the same.
        layers: of the run that would take it.
        budgets: how many it has.
        modules: names of the model's, among which the norms must be.

    Raises:
        ValueError: naming the part.
    """
    step = whole_number("state['step']", state["step"], 0)
    if whole_number("state['frozen_at']", state["frozen_at"], 0) > step:
        raise _unlike("frozen_at", f"at most the step, {step}")
    if not isinstance(state["frozen"], bool):
        raise _unlike("frozen", "True or False")
    if not _are(state["memories"], Mapping) or len(state["memories"]) != budgets:
        raise _unlike("memories", f"a list of dicts, one for each of {budgets} budget(s)")
    if not _are(state["history"], Mapping):
        raise _unlike("history", "a list of dicts")
    norms = state["norms"]
    if not isinstance(norms, Mapping) or not all(name in modules for name in norms.values()):
        raise _unlike("norms", "the names of batch norms of the model, by layer")
    _check_support(state, layers)


def _check_support(state: Mapping[str, Any], layers: Sequence[Layer]) -> None:
    entries = {part.name: part.parameter.numel() for layer in layers for part in layer.parts}
    units = [prod(layer.counts) for layer in layers]
    pruned, kept, empty = state["pruned"], state["kept"], state["empty"]
    if not isinstance(pruned, Mapping) or not all(n in entries and _holds(m, entries[n]) for n, m in pruned.items()):
        raise _unlike("pruned", "a mask of packed bits for each of some of the run's parameters")
    if not _one_each(kept, units) or not all(map(_holds, kept, units)) or (state["frozen"] and not kept):
        raise _unlike("kept", f"a mask of packed bits for each of the run's {len(layers)} layer(s)")
    parts = [count * len(layer.acted_on) for count, layer in zip(units, layers)]
    if not _one_each(empty, units) or not all(map(_counts, empty, parts)) or (state["frozen"] and not empty):
        raise _unlike("empty", f"the numbers of parts of units for each of the run's {len(layers)} layer(s)")


def _one_each(found: object, layers: Sequence[int]) -> bool:
    return isinstance(found, list | tuple) and len(found) in (0, len(layers))


def _are(found: object, kind: type) -> bool:
    return isinstance(found, list | tuple) and all(isinstance(each, kind) for each in found)


def _holds(packed: object, count: int) -> bool:
    return isinstance(packed, Tensor) and packed.dtype is torch.uint8 and packed.shape == (-(-count // 8),)


def _counts(numbers: object, below: int) -> bool:
    if not isinstance(numbers, Tensor) or numbers.dtype is not torch.long or numbers.ndim != 1:
        return False
    return bool(((numbers >= 0) & (numbers < below)).all())


def _unlike(key: str, expected: str) -> ValueError:
    return ValueError(f"the state of a run is damaged: its {key!r} must be {expected}")
