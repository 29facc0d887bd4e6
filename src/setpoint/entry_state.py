"""What an optimizer remembers of single entries of a parameter: where it is found, and how an entry of it is reset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from setpoint.functional.bits import Mask
from setpoint.functional.entries import zero_entries

# More tensors than this of a parameter's shape in one are no moments of several speeds.
_STACKED = 8
# A copy of a weight has moved by less than this part of it after a step.
_NEAR = 0.3
# Where a tensor stands in the state of a parameter: the number of the holder, then keys and indices.
Path = tuple[Any, ...]
Kind = Literal["own", "copy", "mixed", "other"]


@dataclass(frozen=True)
class Slot:
    """What one tensor of an optimizer's state is to the entries of its parameter.

    Attributes:
        kind: `"own"` if what stands at an entry is of that entry alone; `"copy"` if it is the weight itself or follows
            it (an average, a float32 master); `"mixed"` if it depends on other entries too, as rotated moments do;
            `"other"` for what has no entries: factors, projections, counts.
        blank: what stands there of a weight that is zero and never had a gradient, as the tensor stores it.
        positive: whether what stands there is positive whatever the sign of the gradients, as second moments are.
    """

    kind: Kind
    blank: float = 0.0
    positive: bool = False


@dataclass(frozen=True)
class Memory:
    """What the state of an optimizer, and of the wrappers around it, is to the entries of its parameters.

    Attributes:
        slots: by dimensions of the parameter, place in its state, and storage.
        complete: whether an optimizer of this kind has been tried. Otherwise whatever has the shape of a parameter is
            taken for a copy of it, which is right for zeros, whatever it is.
        still: whether a step leaves a weight at zero that is there, whose gradient is zero and whose state has been
            reset, so that nobody has to bring it back.
    """

    slots: Mapping[tuple[Any, ...], Slot] = field(default_factory=dict)
    complete: bool = False
    still: bool = False

    @property
    def has_copies(self) -> bool:
        """Whether there may be copies of weights."""
        return not self.complete or any(slot.kind == "copy" for slot in self.slots.values())

    def all_copies(self) -> Memory:
        """The same, but whatever stands at an entry is reset as often as copies are, and numbers to zero."""
        slots = dict(self.slots)
        for key, slot in slots.items():
            if slot.kind != "other":
                slots[key] = replace(slot, kind="copy", blank=0.0 if key[-1].is_floating_point else slot.blank)
        return Memory(slots, self.complete, self.still)

    def of(self, parameter: Tensor, path: Path, value: Tensor) -> Slot:
        """What a tensor found in the state of a parameter is."""
        slot = self.slots.get(slot_key(parameter, path, value))
        if slot is not None:
            return slot
        shaped = value.shape == parameter.shape or _is_stack(value, parameter.shape)
        if not shaped or not value.dtype.is_floating_point or is_encoded(value):
            return Slot("other")
        return Slot("own" if self.complete else "copy")


def slot_key(parameter: Tensor, path: Path, value: Tensor) -> tuple[Any, ...]:
    """What tells tensors of a state apart, whatever the sizes of the parameters."""
    return parameter.ndim, path, type(value), value.dtype


def state_tensors(holders: Sequence[Any], parameter: Tensor) -> Iterator[tuple[Path, Tensor]]:
    """All tensors in the state of a parameter, with their places; nested ones as well.

    Args:
        holders: optimizers and wrappers, that may share a state.
        parameter: whose state.
    """
    seen: set[int] = {id(parameter)}
    for number, holder in enumerate(holders):
        state = getattr(holder, "state", None)
        if isinstance(state, Mapping) and parameter in state:
            for path, value in _tensors(state[parameter], (number,)):
                if id(value) not in seen:
                    seen.add(id(value))
                    yield path, value


def reset(
    memory: Memory, holders: Sequence[Any], parameter: Tensor, entries: Tensor, *, copies_only: bool = False
) -> None:
    """Make the state of some entries that of weights of zero that never had a gradient; or no more than the copies."""
    for path, value in state_tensors(holders, parameter):
        slot = memory.of(parameter, path, value)
        if slot.kind == "copy" or (slot.kind == "own" and not copies_only):
            fill(value, entries, slot.blank)


def mask_gradient(parameter: Tensor, gone: Mask) -> None:
    """Zero some entries of a gradient, which may be sparse, or part of a graph that is yet to be differentiated."""
    gradient = parameter.grad
    if gradient is None:
        return
    if gradient.is_sparse:
        gradient = gradient.coalesce()
        values = gradient.values().masked_fill(gone.view()[tuple(gradient.indices())], 0.0)
        parameter.grad = torch.sparse_coo_tensor(gradient.indices(), values, gradient.shape, is_coalesced=True)
    elif gradient.requires_grad:
        with torch.enable_grad():
            parameter.grad = gradient.masked_fill(gone.view(), 0.0)
    else:
        zero_entries(gradient, gone)


@contextmanager
def graph_kept(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Let weights be changed before a step in which the optimizer differentiates their gradients once more.

    Autograd would refuse, as the graph holds the weights; the derivatives are then taken at the new ones.
    """
    with ExitStack() as stack:
        for parameter in parameters:
            if parameter.grad is not None and parameter.grad.requires_grad:
                stack.enter_context(_unsafe_preserve_version_counter(parameter))
        yield


def _tensors(value: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _tensors(inner, (*path, index))


def is_encoded(value: Tensor) -> bool:
    """Whether a tensor stores its numbers in a way of its own, as quantised ones do."""
    return type(value).dequantize is not Tensor.dequantize


def decoded(value: Tensor) -> Tensor:
    """The numbers of a tensor, as a plain one."""
    return value.dequantize() if is_encoded(value) else value


def _is_stack(value: Tensor, shape: torch.Size) -> bool:
    """Whether a tensor is a few of that shape, one upon the other, as moments of several speeds are."""
    return len(shape) > 1 and value.ndim == len(shape) + 1 and value.shape[1:] == shape and len(value) <= _STACKED


def _shaped(where: Tensor, value: Tensor) -> Tensor:
    """Entries of a parameter, as a tensor of its state has them."""
    where = where.to(value.device)
    return where.expand(value.shape) if _is_stack(value, where.shape) else where.reshape(value.shape)


def fill(value: Tensor, where: Tensor, number: float) -> None:
    """Set some entries, in whatever way the tensor stores its numbers."""
    where = _shaped(where, value)
    if is_encoded(value):
        value.copy_(decoded(value).masked_fill(where, number))
    else:
        value.masked_fill_(where, number)


def is_near(value: Tensor, weight: Tensor, gone: Tensor) -> bool:
    """Whether the numbers of a tensor are those of the weights, or nearly; of those that are not zero."""
    if not value.dtype.is_floating_point or value.numel() != weight.numel():
        return False
    numbers, weights = (t.reshape(gone.shape)[~gone].double() for t in (decoded(value).to(weight.device), weight))
    return bool((numbers - weights).abs().sum() < _NEAR * weights.abs().sum())


def slot_of(value: Tensor, gone: Tensor, beside: Sequence[Tensor], kind: Kind) -> Slot:
    """What a tensor is, from what it holds of weights that have been zero all along and of others.

    Args:
        value: a tensor of an optimizer's state.
        gone: where the parameter was zero.
        beside: all tensors of the same state.
        kind: what it is taken for.
    """
    stacked = _is_stack(value, gone.shape)
    if value.numel() != gone.numel() and not stacked:
        return Slot("other")
    try:
        numbers = decoded(value)
        there = _shaped(gone, numbers)
        at_zero, others = numbers[there], numbers[~there]
        if kind == "copy":
            fill(value, gone, 0.0)
            return Slot("copy")
        blank, alike = float(at_zero[0]), bool((at_zero == at_zero[0]).all())
        if not value.dtype.is_floating_point:
            blank = _code_of_zero(beside, int(blank))
        fill(value, gone, blank if alike else 0.0)
    except (RuntimeError, NotImplementedError, TypeError):
        # A storage that lets nobody in.
        return Slot("other")
    if not alike:
        return Slot("mixed" if value.dtype.is_floating_point else "other")
    return Slot("own", blank, value.dtype.is_floating_point and not stacked and bool((others > 0).all()))


def _code_of_zero(beside: Sequence[Tensor], code: int) -> int:
    """The code that a table beside a tensor of codes decodes as zero; rounding may have led to one close to it."""
    tables = [t for t in beside if t.ndim == 1 and t.dtype.is_floating_point and code < t.numel() <= 256]
    tables = [t for t in tables if bool((t == 0).any())]
    nearest = min(tables, key=lambda t: abs(float(t[code])), default=None)
    return code if nearest is None else int((nearest == 0).nonzero()[0])


def both(one: Slot, other: Slot) -> Slot:
    """What is true of a tensor in the states of two parameters."""
    kinds = {one.kind, other.kind}
    if len(kinds) > 1:
        return next(Slot(kind) for kind in ("copy", "other", "mixed") if kind in kinds)
    return Slot(one.kind, one.blank, one.positive and other.positive)
