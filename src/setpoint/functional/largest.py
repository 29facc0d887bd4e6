"""The largest of many numbers, in few passes over memory: a sample bounds the cut, one pass confirms it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from setpoint.functional.compiled.threads import Array, ranges
from setpoint.functional.values import PIECE, Values, each_piece

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
    some = 0 < count < sum(v.numel() for v in values)
    arrays = [np.empty(v.numel(), np.bool_) if some else np.full(v.numel(), count > 0) for v in values]
    if some and not any(_mark_between(values, arrays, count, deviations) for deviations in _DEVIATIONS):
        _mark_by_digits(values, arrays, count)
    return [(torch.from_numpy(a).view(v.shape), int(np.count_nonzero(a))) for v, a in zip(values, arrays)]


def _mark_between(values: Sequence[Values], arrays: Sequence[Array], count: int, deviations: float) -> bool:
    """Mark them, if the cut lies between two bounds that a sample gives, and not too much else does."""
    low, high, often_low, often_high = _bounds(values, count, deviations)

    def look(i: int, a: int, b: int) -> tuple[int, int, int, Array, Array] | None:
        piece, over = values[i].piece(a, b), arrays[i][a:b]
        np.greater(piece, high, out=over)
        above = int(np.count_nonzero(over))
        # Many that equal a bound are counted by themselves.
        upper = piece >= high if often_high else over
        at_high = int(np.count_nonzero(upper)) - above if often_high else 0
        under = piece > low
        below = int(np.count_nonzero(under))
        at_low = int(np.count_nonzero(piece == low)) if often_low else 0
        if (below - above - at_high) * _NEAR > max(8192, piece.size):
            return None
        places = np.flatnonzero(np.logical_xor(upper, under, out=under)).astype(np.int32)
        return above, at_high, at_low, places, piece[places]

    looked = each_piece(values, look)
    answers = [answer for layer in looked for answer in layer if answer is not None]
    above, at_high, at_low = (sum(column) for column in list(zip(*answers))[:3]) if answers else (0, 0, 0)
    missing, inside = count - above, sum(answer[3].size for answer in answers)
    if len(answers) < sum(map(len, looked)) or not 0 <= missing <= at_high + inside + at_low:
        return False
    _mark_equal(values, arrays, high, min(missing, at_high))
    missing = max(0, missing - at_high)
    threshold, ties = low, 0
    if missing < inside:
        near = np.concatenate([answer[4] for answer in answers])
        threshold = np.partition(near, inside - missing - 1)[inside - missing - 1]
        ties = missing - int(np.count_nonzero(near > threshold))
    rest = iter(answers)
    for array in arrays:
        for (a, _), (_, _, _, places, found) in zip(ranges(array.size, PIECE), rest):
            stays = found > threshold
            if ties and len(equal := np.flatnonzero(found == threshold)[:ties]):
                stays[equal] = True
                ties -= len(equal)
            array[a + places[stays]] = True
    _mark_equal(values, arrays, low, max(0, missing - inside))
    return True


def _mark_equal(values: Sequence[Values], arrays: Sequence[Array], number: Any, count: int) -> None:
    """Mark so many that equal a number, the first ones."""
    for value, array in zip(values, arrays):
        for a, b in ranges(value.numel() if count else 0, PIECE):
            places = np.flatnonzero(value.piece(a, b) == number)[:count]
            array[a + places] = True
            count -= len(places)


def _mark_by_digits(values: Sequence[Values], arrays: Sequence[Array], count: int) -> None:
    """Mark them by the bits of the numbers, which order as they do, some bits at a time: exact however they lie."""
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

        total = np.sum([part for layer in each_piece(values, tally) for part in layer], axis=0)
        from_top = np.cumsum(total[::-1])
        digit = int(np.searchsorted(from_top, missing))
        missing -= int(from_top[digit - 1]) if digit else 0
        prefix = (prefix << _DIGIT) | ((1 << _DIGIT) - 1 - digit)
    threshold = np.array(prefix, unsigned).view(kind)[()]
    each_piece(values, lambda i, a, b: np.greater(values[i].piece(a, b), threshold, out=arrays[i][a:b]))
    _mark_equal(values, arrays, threshold, missing)


def _bounds(values: Sequence[Values], count: int, deviations: float) -> tuple[Any, Any, bool, bool]:
    """Two numbers that the cut most likely lies between, and whether there are many of each, from a sample."""
    total = sum(v.numel() for v in values)
    step = max(_RUN, total // _SAMPLE * _RUN)
    sample = np.concatenate([v.sample(step, _RUN) for v in values])
    sample.sort()
    place = len(sample) * (1.0 - count / total)
    spread = deviations * math.sqrt(len(sample) * (count / total) * (1.0 - count / total)) + _RUN
    lower, upper = math.floor(place - spread), math.ceil(place + spread)
    kind = sample.dtype.type
    low = sample[lower] if lower >= 0 else kind(-1)
    high = sample[upper] if upper < len(sample) else kind(np.finfo(kind).max)
    often_low, often_high = (
        bool(np.searchsorted(sample, n, "right") - np.searchsorted(sample, n) > 1) for n in (low, high)
    )
    return low, high, often_low, often_high
