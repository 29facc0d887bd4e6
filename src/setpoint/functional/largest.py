"""The largest of many numbers, in few passes over memory: a sample bounds the cut, one pass confirms it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from setpoint.functional.compiled.threads import Array
from setpoint.functional.values import Values, each_piece

# Numbers of the sample, in runs of neighbours.
_SAMPLE, _RUN = 1 << 18, 16
# Deviations of the sample's rank on either side of the cut; runs of neighbours are less than independent, so that
# the narrow bounds may have to give way to wide ones.
_DEVIATIONS = (5.0, 25.0)
# Of a piece, how large a part may lie between the bounds.
_NEAR = 8
# Bits that are told apart in one pass, where bounds do not help.
_DIGIT = 16

_BITS: dict[np.dtype[Any], type[np.unsignedinteger[Any]]] = {
    np.dtype(np.float32): np.uint32,
    np.dtype(np.float64): np.uint64,
}


def largest_of_many(values: Sequence[Values], count: int, floors: Sequence[int]) -> list[Tensor]:
    """Mark the `count` largest numbers, ties going to the earlier layer and the lower index.

    Args:
        values: on the CPU, finite, all float32 or all float64.
        count: how many, at least as many as the floors ask for.
        floors: how many each layer must keep at least.

    Returns:
        Boolean tensors, shaped as the values.
    """
    masks: list[Tensor] = [torch.empty(0)] * len(values)
    apart: dict[int, int] = {}
    while True:
        # A layer that would be left fewer than its floor has these, its largest, and takes no part in the others' cut.
        together = [i for i in range(len(values)) if i not in apart]
        found = _marked([values[i] for i in together], count - sum(apart.values()))
        short = {}
        for i, (mask, kept) in zip(together, found):
            masks[i] = mask
            if kept < (floor := min(floors[i], values[i].numel())):
                short[i] = floor
        if not short:
            break
        apart |= short
    for i, floor in apart.items():
        masks[i], _ = _marked([values[i]], floor)[0]
    return masks


def _marked(values: Sequence[Values], count: int) -> list[tuple[Tensor, int]]:
    """Layer by layer the mask of what is among the largest, and how many these are."""
    if 0 < count < sum(v.numel() for v in values):
        cut = _cut(values, count)
    else:
        cut = (-1.0, 0) if count > 0 else (math.inf, 0)
    threshold, ties = cut
    arrays = [np.empty(v.numel(), np.bool_) for v in values]

    def mark(i: int, a: int, b: int) -> tuple[int, int, int, int]:
        piece = values[i].piece(a, b)
        over = np.greater(piece, threshold, out=arrays[i][a:b])
        return a, b, int(np.count_nonzero(over)), int(np.count_nonzero(piece == threshold)) if ties else 0

    marked = []
    for value, array, pieces in zip(values, arrays, each_piece(values, mark)):
        kept = sum(above for _, _, above, _ in pieces)
        for a, b, _, equal in pieces:
            if ties and equal:
                first = np.flatnonzero(value.piece(a, b) == threshold)[:ties]
                array[a + first] = True
                kept, ties = kept + len(first), ties - len(first)
        marked.append((torch.from_numpy(array).view(value.shape), kept))
    return marked


def _cut(values: Sequence[Values], count: int) -> tuple[Any, int]:
    """A threshold, all above which stay, and how many of those equal to it."""
    for deviations in _DEVIATIONS:
        low, high = _bounds(values, count, deviations)
        found = _between(values, count, low, high)
        if found is not None:
            return found
    return _digits(values, count)


def _between(values: Sequence[Values], count: int, low: Any, high: Any) -> tuple[Any, int] | None:
    """The cut, if it lies between two bounds, and not too much else; what equals a bound is counted by itself."""

    def look(i: int, a: int, b: int) -> tuple[int, int, int, Array | None]:
        piece = values[i].piece(a, b)
        over = int(np.count_nonzero(piece > high))
        upper, under = piece >= high, piece > low
        at_high = int(np.count_nonzero(upper)) - over
        below = int(np.count_nonzero(under))
        at_low = int(np.count_nonzero(piece >= low)) - below
        if (below - over - at_high) * _NEAR > max(8192, piece.size):
            return over, at_high, at_low, None
        return over, at_high, at_low, piece[np.logical_xor(upper, under, out=under)]

    looked = [answer for layer in each_piece(values, look) for answer in layer]
    near = [found for _, _, _, found in looked if found is not None]
    over, at_high, at_low = (sum(answer[k] for answer in looked) for k in range(3))  # type: ignore[misc]
    inside, missing = sum(found.size for found in near), count - over
    if len(near) < len(looked) or not 0 <= missing <= at_high + inside + at_low:
        return None
    if missing <= at_high:
        return _of_equal(high, missing, at_high) if missing else (high, 0)
    missing -= at_high
    if missing > inside:
        return _of_equal(low, missing - inside, at_low)
    together = np.concatenate(near)
    threshold = np.partition(together, together.size - missing)[together.size - missing]
    return _of_equal(threshold, missing - int((together > threshold).sum()), int((together == threshold).sum()))


def _of_equal(threshold: Any, ties: int, equal: int) -> tuple[Any, int]:
    """So many of those that equal the threshold stay; where all of them do, the threshold is just below."""
    return (np.nextafter(threshold, threshold.dtype.type(-1)), 0) if ties == equal else (threshold, ties)


def _digits(values: Sequence[Values], count: int) -> tuple[Any, int]:
    """The cut from the bits of the numbers, which order as they do, some bits at a time: exact however they lie."""
    kind = np.dtype(np.float64 if values[0].dtype == torch.float64 else np.float32)
    unsigned, shift = _BITS[kind], 8 * kind.itemsize
    prefix, missing = 0, count
    while shift:
        shift -= _DIGIT

        def tally(i: int, a: int, b: int, shift: int = shift, prefix: int = prefix) -> Array:
            bits = np.ascontiguousarray(values[i].piece(a, b)).view(unsigned)
            digits = (bits >> unsigned(shift)).astype(np.int64)
            digits = digits[digits >> _DIGIT == prefix] & ((1 << _DIGIT) - 1)
            return np.bincount(digits, minlength=1 << _DIGIT)

        total = sum(part for layer in each_piece(values, tally) for part in layer)
        from_top = np.cumsum(total[::-1])
        digit = int(np.searchsorted(from_top, missing))
        missing -= int(from_top[digit - 1]) if digit else 0
        equal = int(total[::-1][digit])
        prefix = (prefix << _DIGIT) | ((1 << _DIGIT) - 1 - digit)
    threshold = np.array(prefix, unsigned).view(kind)[()]
    return _of_equal(threshold, missing, equal)


def _bounds(values: Sequence[Values], count: int, deviations: float) -> tuple[Any, Any]:
    """Two numbers that the cut most likely lies between, from a sample in runs of neighbours."""
    total = sum(v.numel() for v in values)
    step = max(_RUN, total // _SAMPLE * _RUN)
    sample = np.concatenate([v.sample(step, _RUN) for v in values])
    sample.sort()
    place = len(sample) * (1.0 - count / total)
    spread = deviations * math.sqrt(len(sample) * (count / total) * (1.0 - count / total)) + _RUN
    lower, upper = math.floor(place - spread), math.ceil(place + spread)
    none, all_ = sample.dtype.type(-1), np.finfo(sample.dtype).max  # below and above everything
    return (sample[lower] if lower >= 0 else none), (sample[upper] if upper < len(sample) else all_)
