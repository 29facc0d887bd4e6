"""What an optimizer remembers of single entries of a parameter: forgotten where they go, begun where they come."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from setpoint.entry_state import Memory, decoded, fill, graph_kept, mask_gradient, reset, state_tensors

__all__ = ["clear_state", "graph_kept", "mask_copies", "mask_gradient", "remember", "stays_zero", "warm_second_moment"]

# What the optimizers in use were found to remember, they and the wrappers around them, which may hold a part of it.
_KNOWN: WeakKeyDictionary[Optimizer, list[tuple[Memory, list[weakref.ref[Any]]]]] = WeakKeyDictionary()


def remember(optimizer: Optimizer, found: Sequence[tuple[Memory, Sequence[Any]]]) -> None:
    """Note what the state of an optimizer is made of, and which wrappers and optimizers hold it."""
    _KNOWN[optimizer] = [(memory, [weakref.ref(holder) for holder in holders]) for memory, holders in found]


def clear_state(optimizer: Optimizer, parameter: Tensor, gone: Callable[[], Tensor]) -> None:
    """Have an optimizer remember of some entries what it does of weights of zero that never had a gradient.

    Args:
        optimizer: that trains the parameter.
        parameter: whose entries.
        gone: which of them, as a boolean tensor, asked for if the optimizer remembers anything.
    """
    for memory, holders in _known(optimizer):
        if any(True for _ in state_tensors(holders, parameter)):
            reset(memory, holders, parameter, gone())


def mask_copies(optimizer: Optimizer, parameter: Tensor, gone: Callable[[], Tensor]) -> None:
    """Zero what is gone in the copies of a parameter that an optimizer keeps: averages, slow weights, masters.

    They would bring it back. To be called whenever the parameter itself is masked. Arguments as of `clear_state`.
    """
    for memory, holders in _known(optimizer):
        if memory.has_copies and any(True for _ in state_tensors(holders, parameter)):
            reset(memory, holders, parameter, gone(), copies_only=True)


def stays_zero(optimizer: Optimizer) -> bool:
    """Whether what is zero stays so by itself where gradients are masked and the state was cleared, as was tried."""
    return all(memory.still for memory, holders in _known(optimizer) if holders)


@torch.no_grad()
def warm_second_moment(optimizer: Optimizer, parameter: Tensor, new: Tensor, old: Tensor) -> None:
    """Give new entries the mean second moment of the old ones, of those that have one at all.

    Adam corrects its moments for having begun at zero by a count of steps that a whole parameter shares. Late in the
    run nothing is corrected any more: an entry whose moments begin at zero then moves by
    `lr (1 - beta1) / sqrt(1 - beta2)` in its first step, 3.16 times the learning rate, whatever its gradient.
    """
    for memory, holders in _known(optimizer):
        for path, value in state_tensors(holders, parameter):
            if memory.of(parameter, path, value).positive:
                numbers = decoded(value).reshape(parameter.shape)
                seen = numbers[old.to(value.device) & (numbers > 0)]
                fill(value, new, float(seen.mean(dtype=torch.float64)) if seen.numel() else 0.0)


def _known(optimizer: Optimizer) -> list[tuple[Memory, list[Any]]]:
    found = _KNOWN.get(optimizer, [(Memory(), [weakref.ref(optimizer)])])
    return [(memory, [reference() for reference in references]) for memory, references in found]
