"""Entries of a tensor on the CPU, changed in place and in pieces that a core's cache holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from setpoint.functional.bits import Mask
from setpoint.functional.compiled import installed
from setpoint.functional.compiled.threads import Array, on_threads, ranges
from setpoint.functional.values import PIECE, Values


def writable(entries: Tensor) -> bool:
    """Whether a tensor can be changed here: contiguous, float32 or float64, on the CPU."""
    return entries.device.type == "cpu" and entries.dtype in (torch.float32, torch.float64) and entries.is_contiguous()


def zero_entries(tensor: Tensor, where: Mask) -> None:
    """Set some entries to zero, whatever is there, in place.

    Args:
        tensor: of any kind.
        where: which entries, in its shape and on its device.
    """
    if not writable(tensor):
        tensor.masked_fill_(where.tensor().to(tensor.device), 0.0)
        return
    array, zero = tensor.detach().view(-1).numpy(), _zero_marked()

    def work(piece: tuple[int, int]) -> None:
        begin, end = piece
        zero(array[begin:end], where.array(begin, end).view(np.uint8))

    on_threads(work, list(ranges(len(array))))
    torch.autograd.graph.increment_version(tensor)


def zero_finite_entries(tensor: Tensor, where: Mask) -> bool:
    """Set some entries to zero in place; whether all that was there was finite.

    Args:
        tensor: that is `writable`.
        where: which entries, in its shape.
    """
    array, zero = tensor.detach().view(-1).numpy(), _zero_checked()

    def work(piece: tuple[int, int]) -> bool:
        begin, end = piece
        return bool(zero(array[begin:end], where.array(begin, end).view(np.uint8)))

    finite = all(on_threads(work, list(ranges(len(array)))))
    torch.autograd.graph.increment_version(tensor)
    return finite


def count_nonzero(tensor: Tensor) -> Tensor:
    """How many entries are not zero: 0-dimensional, on the tensor's device."""
    if tensor.dtype is torch.bool and tensor.device.type == "cpu":
        return torch.tensor(int(np.count_nonzero(tensor.numpy())))
    if not writable(tensor):
        return torch.count_nonzero(tensor)
    array = tensor.detach().view(-1).numpy()
    pieces = list(ranges(len(array), PIECE))
    counts = on_threads(lambda piece: int(np.count_nonzero(array[piece[0] : piece[1]] != 0)), pieces)
    return torch.tensor(sum(counts))


def multiply_entries(entries: Tensor, factors: Tensor | Mask | Values) -> None:
    """Multiply each entry by its factor; True and False stand for one and zero.

    Args:
        entries: that are `writable`.
        factors: as many, in the order of the indices; `Values` may be computed of the same entries.
    """
    array = entries.detach().view(-1).numpy()
    flat: Array = factors.reshape(-1).numpy() if isinstance(factors, Tensor) else np.empty(0)

    def work(piece: tuple[int, int]) -> None:
        begin, end = piece
        part = array[begin:end]
        if isinstance(factors, Values):
            by = factors.piece(begin, end)
        elif isinstance(factors, Mask):
            by = factors.array(begin, end)
        else:
            by = flat[begin:end]
        np.multiply(part, by, out=part, casting="same_kind")

    on_threads(work, list(ranges(len(array), PIECE)))
    torch.autograd.graph.increment_version(entries)


@cache
def _zero_checked() -> Callable[[Array, Array], object]:
    if not installed():

        def eager(part: Array, marks: Array) -> object:
            finite = bool(np.isfinite(part.sum(dtype=np.float64))) or bool(np.isfinite(part).all())
            np.copyto(part, 0.0, where=marks.view(np.bool_))
            return finite

        return eager
    from setpoint.functional.compiled.zero import zero_marked_checked

    def compiled(part: Array, marks: Array) -> object:
        unsigned = np.uint64 if part.itemsize == 8 else np.uint32
        infinity = np.array(np.inf, part.dtype).view(unsigned)[()]
        return zero_marked_checked(part, part.view(unsigned), infinity, marks)

    return compiled


@cache
def _zero_marked() -> Callable[[Array, Array], object]:
    if installed():
        from setpoint.functional.compiled.zero import zero_marked

        found: Callable[[Array, Array], object] = zero_marked
        return found
    return lambda part, marks: np.copyto(part, 0.0, where=marks.view(np.bool_))
