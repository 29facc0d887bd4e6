"""The largest of many magnitudes, in compiled passes over memory: a sample bounds the cut, one pass confirms it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from setpoint.functional.compiled.threads import Array, in_memory, on_threads, ranges

# Magnitudes of the sample, in runs of neighbours.
_SAMPLE, _RUN = 1 << 18, 16
# Deviations of the sample's rank on either side of the cut; runs of neighbours are less than independent, so that
# the narrow bounds may have to give way to wide ones.
_DEVIATIONS = (5.0, 25.0)

# The number of an array, and where in it a piece begins and ends.
_Piece = tuple[int, int, int]

_BITS = {np.dtype(np.float32): np.uint32, np.dtype(np.float64): np.uint64}


def largest_of_many(magnitudes: Sequence[Tensor], count: int, floors: Sequence[int]) -> list[Tensor] | None:
    """Mark the `count` largest magnitudes, ties going to the earlier tensor and the lower index.

    Args:
        magnitudes: on the CPU, all float32 or all float64.
        count: how many, above 0 and below all.
        floors: how many each tensor must keep at least.

    Returns:
        Boolean tensors; None where this way does not lead to them: magnitudes that are refused, tensors with gaps in
        memory, a cut among many that are equal, or one that a floor forbids.
    """
    from setpoint.functional.compiled import select

    arrays = [in_memory(m) for m in magnitudes]
    full = [a for a in arrays if a is not None]
    if len(full) < len(arrays) or len({a.dtype for a in full}) != 1:
        return None
    pieces = [(i, a, b) for i, array in enumerate(full) for a, b in ranges(len(array))]
    cut = next((found for deviations in _DEVIATIONS if (found := _cut(full, pieces, count, deviations))), None)
    if cut is None or (cut[1] and not all(m.is_contiguous() for m in magnitudes)):
        return None
    threshold, ties = cut
    masks = [np.empty(len(array), np.bool_) for array in full]
    kept = [0] * len(full)

    def mark(piece: _Piece) -> int:
        i, a, b = piece
        marked: int = select.mark_above(full[i][a:b], threshold, masks[i][a:b])
        return marked

    for piece, marked in zip(pieces, on_threads(mark, pieces)):
        kept[piece[0]] += marked
    for i, array in enumerate(full):
        if ties:
            first = np.flatnonzero(array == threshold)[:ties]
            masks[i][first] = True
            kept[i] += len(first)
            ties -= len(first)
    if any(k < min(floor, len(array)) for k, floor, array in zip(kept, floors, full)):
        return None
    return [_shaped(mask, like) for mask, like in zip(masks, magnitudes)]


def _cut(
    arrays: Sequence[Array], pieces: Sequence[_Piece], count: int, deviations: float
) -> tuple[np.floating, int] | None:
    """A threshold, all above which stay, and how many of those equal to it; None where the bounds do not hold."""
    from setpoint.functional.compiled import select

    low, high = _bounds(arrays, count, deviations)
    kind = arrays[0].dtype
    largest = np.array(np.finfo(kind).max, kind).view(_BITS[kind])[()]

    def look(piece: _Piece) -> tuple[int, int, bool, Array]:
        part = arrays[piece[0]][piece[1] : piece[2]]
        room = np.empty(max(1024, part.size // 8), kind)
        above, inside, good = select.between(part, part.view(_BITS[kind]), largest, low, high, room)
        return above, inside, good and inside <= room.size, room[:inside]

    looked = on_threads(look, pieces)
    missing = count - sum(above for above, _, _, _ in looked)
    if not all(good for _, _, good, _ in looked) or not 0 <= missing <= sum(inside for _, inside, _, _ in looked):
        return None
    if missing == 0:
        return high, 0
    near = np.concatenate([found for _, _, _, found in looked])
    threshold = np.partition(near, near.size - missing)[near.size - missing]
    ties = missing - int((near > threshold).sum())
    if ties == int((near == threshold).sum()):
        # All of them stay: the threshold is just below.
        return np.nextafter(threshold, threshold.dtype.type(-1)), 0
    return threshold, ties


def _bounds(arrays: Sequence[Array], count: int, deviations: float) -> tuple[np.floating, np.floating]:
    """Two magnitudes that the cut most likely lies between, from a sample in runs of neighbours."""
    total = sum(len(array) for array in arrays)
    step = max(_RUN, total // _SAMPLE * _RUN)
    sample = np.concatenate([_runs(array, step) for array in arrays])
    sample.sort()
    place = len(sample) * (1.0 - count / total)
    spread = deviations * math.sqrt(len(sample) * (count / total) * (1.0 - count / total)) + _RUN
    lower, upper = math.floor(place - spread), math.ceil(place + spread)
    none, all_ = sample.dtype.type(-1), np.finfo(sample.dtype).max
    return (sample[lower] if lower >= 0 else none), (sample[upper] if upper < len(sample) else all_)


def _runs(array: Array, step: int) -> Array:
    whole = len(array) // step * step
    rest: Array = array[whole:][:_RUN] if len(array) > whole else array[:0]
    runs: Array = np.concatenate([array[:whole].reshape(-1, step)[:, :_RUN].reshape(-1), rest])
    return runs


def _shaped(mask: Array, like: Tensor) -> Tensor:
    flat = torch.from_numpy(mask)
    return flat.reshape(like.shape) if like.is_contiguous() else flat.as_strided(like.shape, like.stride())
