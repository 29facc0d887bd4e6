"""Entries of a tensor on the CPU, changed in place and in pieces that a core's cache holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from setpoint.functional.bits import Mask
from setpoint.functional.compiled import WORTH, installed
from setpoint.functional.compiled.threads import Array, on_threads, ranges
from setpoint.functional.values import PIECE, Values

# Rows that are summed at a time.
_ROWS = 64


def writable(entries: Tensor) -> bool:
    """Whether a tensor can be changed here: contiguous, float32 or float64, on the CPU."""
    return entries.device.type == "cpu" and entries.dtype in (torch.float32, torch.float64) and entries.is_contiguous()


def zero_entries(tensor: Tensor, where: Mask) -> None:
    """Set some entries to zero, whatever is there, in place.

    Args:
        tensor: of any kind.
        where: which entries, in its shape; on any device.
    """
    if not writable(tensor) or not where.packs:
        tensor.masked_fill_(where.view().to(tensor.device), 0.0)
        return
    array = tensor.detach().view(-1).numpy()
    zero = _zero_marked() if len(array) >= WORTH else _zero_eagerly

    def work(piece: tuple[int, int]) -> None:
        begin, end = piece
        zero(array[begin:end], where.array(begin, end).view(np.uint8))

    on_threads(work, list(ranges(len(array))))
    torch.autograd.graph.increment_version(tensor)


def zero_finite_entries(tensor: Tensor, where: Mask) -> bool:
    """Set some entries to zero in place; whether all that was there was finite.

    Args:
        tensor: that is `writable`.
        where: which entries, in its shape and on the CPU.
    """
    array = tensor.detach().view(-1).numpy()
    zero = _zero_checked() if len(array) >= WORTH else _check_eagerly

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


def squares_across(stacks: Tensor) -> Tensor:
    """Of each column of some matrices the sum of squares: shape (count, columns), float64.

    Columns are far apart in memory, and are therefore summed side by side: in the matrix's own precision over a few
    rows, and in double over these.

    Args:
        stacks: that are `writable`, of shape (count, rows, columns).
    """
    arrays = stacks.detach().numpy()
    pieces = [(g, a, b) for g in range(len(arrays)) for a, b in ranges(arrays.shape[1], _ROWS)]

    def work(piece: tuple[int, int, int]) -> Array:
        rows = arrays[piece[0], piece[1] : piece[2]]
        squares: Array = np.einsum("rc,rc->c", rows, rows)
        return squares

    sums = np.zeros((arrays.shape[0], arrays.shape[2]))
    for (g, _, _), squares in zip(pieces, on_threads(work, pieces)):
        sums[g] += squares
    return torch.from_numpy(sums)


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
        return _check_eagerly
    from setpoint.functional.compiled.zero import zero_marked_checked

    def compiled(part: Array, marks: Array) -> object:
        unsigned = _unsigned(part)
        infinity = np.array(np.inf, part.dtype).view(unsigned)[()]
        return zero_marked_checked(part, part.view(unsigned), infinity, marks)

    return compiled


def _check_eagerly(part: Array, marks: Array) -> bool:
    # A sum in double is finite where the entries are; where it is not, these are looked at.
    with np.errstate(invalid="ignore", over="ignore"):
        finite = bool(np.isfinite(part.sum(dtype=np.float64))) or bool(np.isfinite(part).all())
    _zero_eagerly(part, marks)
    return finite


@cache
def _zero_marked() -> Callable[[Array, Array], object]:
    if not installed():
        return _zero_eagerly
    from setpoint.functional.compiled.zero import zero_marked

    return lambda part, marks: zero_marked(part, part.view(_unsigned(part)), marks)


def _unsigned(part: Array) -> type[np.unsignedinteger[Any]]:
    return np.uint64 if part.itemsize == 8 else np.uint32


def _zero_eagerly(part: Array, marks: Array) -> None:
    np.copyto(part, 0.0, where=marks.view(np.bool_))
