"""Lossless encodings of arrays in which many entries are zero.

Everything here works on words (`setpoint.deploy.words`): entries seen as integers of the same width. "Zero" is thus a
matter of bits: +0.0 is the word 0, which is left out; infinities and the payload of a NaN are words like any other.

An encoding says where the non-zero entries stand; their words follow in order. In bits per entry, for entries of ``b``
bits of which a fraction ``d`` is non-zero, spread at random:

==========  ======================================  ==============  ==============  ==============
encoding    bits per entry                          b = 32, d = .5  b = 32, d = .1  b = 32, d = .02
==========  ======================================  ==============  ==============  ==============
dense       b                                       32              32              32
bitmask     1 + d b                                 17              4.20            1.64
gaps(w)     d (b + w / (1 - (1 - d)^(2^w - 1)))     17.1            3.70            0.79
==========  ======================================  ==============  ==============  ==============

``gaps`` has a code of ``w`` bits for the zeros before each non-zero entry, and ``w`` is the cheapest of 2..16. Three
things come on top, where they pay:

* the *box*: along every axis, slices that are zero throughout are left out (1 bit per slice says which), so that the
  zero rows, columns, filters and channels of structured sparsity cost nothing more;
* words that are all the same are stored once, so that a boolean mask costs its positions only;
* -0.0, which is what a negative weight times a mask leaves behind, counts as a zero with a *sign*: 1 bit per zero. So
  a tensor that was masked with `torch.where` or `masked_fill_` is smaller than one that was multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from setpoint.deploy.words import Array
from setpoint.functional.bits import pack_bits, unpack_bits

Bytes = npt.NDArray[np.uint8]
Bits = npt.NDArray[np.bool_]
Encoding = Literal["dense", "bitmask", "gaps"]

_MAX_WIDTH = 16
_BLOCK_BYTES = 1 << 16
# About what one more named tensor takes in the file's header. It keeps short vectors dense.
_PART_OVERHEAD = 100


@dataclass(frozen=True, eq=False)
class Packed:
    """An array in one of the encodings.

    Attributes:
        encoding: How the positions of the non-zero entries are coded.
        width: Bits per code for ``gaps``, 0 for the other encodings.
        parts: ``values``, the stored words, of shape (n,), where n = 1 may stand for any number of equal ones;
            ``positions`` (uint8), unless the encoding is ``dense``; ``axes`` (uint8), if only the box is stored: a bit
            for every slice along every axis, which says whether it is in the box; ``signs`` (uint8), if there are
            negative zeros that are not among the values: a bit for every zero.
    """

    encoding: Encoding
    width: int = 0
    parts: Mapping[str, Array] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes that the parts take in a file, an estimate of their headers included."""
        return sum(part.nbytes + _PART_OVERHEAD for part in self.parts.values())


def pack(words: Array) -> Packed:
    """Encode an array of words in whichever way takes the fewest bytes (`Packed.nbytes`).

    Args:
        words: Integers, of any shape.

    Returns:
        The encoding and its arrays. The shape and dtype are not part of it.
    """
    signs = words == _sign(words.dtype)
    plain = _pack_box(words)
    if not signs.any():
        return plain
    unsigned = np.where(signs, words.dtype.type(0), words)
    signed = _pack_box(unsigned)
    signed = replace(signed, parts={"signs": _pack_bits(signs[unsigned == 0]), **signed.parts})
    return _smallest(plain, signed)


def unpack(packed: Packed, shape: Sequence[int]) -> Array:
    """Decode what `pack` encoded, in new memory.

    Args:
        packed: The encoding and its arrays.
        shape: Of the array of words.

    Raises:
        ValueError: If the parts do not agree with each other and with the shape.
        IndexError: If a position lies outside the shape.
    """
    words = _unpack_box(packed, shape)
    if "signs" in packed.parts:
        zeros = words == 0
        signs = _unpack_bits(packed.parts["signs"], int(zeros.sum()))
        words[zeros] = signs * words.dtype.type(_sign(words.dtype))
    return words


def _sign(dtype: np.dtype[Any]) -> int:
    """The word of -0.0: only the sign bit is set."""
    return int(np.iinfo(dtype).min)


def _smallest(*candidates: Packed) -> Packed:
    return min(candidates, key=lambda packed: packed.nbytes)


def _pack_box(words: Array) -> Packed:
    whole = _pack_flat(words.reshape(-1))
    axes = _occupied_slices(words) if words.ndim > 1 else []
    if all(axis.all() for axis in axes):
        return whole
    box = _pack_flat(words[np.ix_(*axes)].reshape(-1))
    return _smallest(whole, replace(box, parts={"axes": _pack_bits(np.concatenate(axes)), **box.parts}))


def _unpack_box(packed: Packed, shape: Sequence[int]) -> Array:
    if "axes" not in packed.parts:
        return _unpack_flat(packed, math.prod(shape)).reshape(tuple(shape))
    axes = _split_axes(packed.parts["axes"], shape)
    lengths = [int(axis.sum()) for axis in axes]
    words = np.zeros(tuple(shape), dtype=packed.parts["values"].dtype)
    words[np.ix_(*axes)] = _unpack_flat(packed, math.prod(lengths)).reshape(lengths)
    return words


def _pack_flat(flat: Array) -> Packed:
    dense = Packed("dense", parts={"values": _collapse(flat)})
    places = np.flatnonzero(flat)
    if places.size == flat.size:
        return dense
    values = _collapse(flat[places])
    gaps = np.diff(places, prepend=-1) - 1
    width = _cheapest_width(gaps, flat.size)
    if width == 1:
        sparse = Packed("bitmask", parts={"positions": _pack_bits(flat != 0), "values": values})
    else:
        sparse = Packed("gaps", width, {"positions": _encode_gaps(gaps, width), "values": values})
    return _smallest(dense, sparse)


def _unpack_flat(packed: Packed, size: int) -> Array:
    values = packed.parts["values"]
    if values.ndim != 1:
        raise ValueError(f"expected values along one axis, found the shape {values.shape}")
    flat = np.zeros(size, dtype=values.dtype)
    if packed.encoding == "dense":
        flat[:] = values
    elif packed.encoding == "bitmask":
        flat[_unpack_bits(packed.parts["positions"], size)] = values
    elif packed.encoding == "gaps":
        used = 0
        for places in _decode_gaps(packed.parts["positions"], packed.width):
            flat[places] = values if values.size == 1 else values[used : used + places.size]
            used += places.size
        if values.size not in (1, used):
            raise ValueError(f"{values.size} values cannot fill {used} positions")
    else:
        raise ValueError(f"unknown encoding {packed.encoding!r}")
    return flat


def _collapse(values: Array) -> Array:
    """One word in place of many equal ones; NumPy's broadcasting expands it again."""
    if values.size > 1 and values[0] == values[-1] and (values == values[0]).all():
        return values[:1]
    return values


def _occupied_slices(words: Array) -> list[Bits]:
    """For each axis, which of its slices hold a non-zero word."""
    occupied = words != 0
    every = range(words.ndim)
    return [occupied.any(axis=tuple(other for other in every if other != axis)) for axis in every]


def _split_axes(packed: Bytes, shape: Sequence[int]) -> list[Bits]:
    return np.split(_unpack_bits(packed, sum(shape)), np.cumsum(shape)[:-1])


def _pack_bits(bits: Bits) -> Bytes:
    packed: Bytes = pack_bits(torch.from_numpy(bits)).numpy()
    return packed


def _unpack_bits(packed: Bytes, count: int) -> Bits:
    bits: Bits = unpack_bits(torch.from_numpy(packed), (count,)).numpy()
    return bits


def _cheapest_width(gaps: npt.NDArray[np.int64], size: int) -> int:
    """Bits per code that make the gap codes shortest, or 1 where a bitmask of ``size`` bits is shorter."""
    if not gaps.size:
        return 2
    # Each non-zero entry takes at least one code, so that wider codes than this cannot beat the bitmask.
    widths = range(2, min(_MAX_WIDTH, size // gaps.size) + 1)
    bits = {width: width * (gaps.size + int((gaps // _escape(width)).sum())) for width in widths}
    return min(bits, key=bits.__getitem__) if min(bits.values(), default=size) < size else 1


def _escape(width: int) -> int:
    """The code that skips this many zeros and is followed by more of the same gap."""
    return (1 << width) - 1


def _encode_gaps(gaps: npt.NDArray[np.int64], width: int) -> Bytes:
    escapes, rests = np.divmod(gaps, _escape(width))
    ends = np.cumsum(escapes + 1)
    codes = np.full(int(ends[-1]) if ends.size else 0, _escape(width), dtype=np.uint16)
    codes[ends - 1] = rests
    return _pack_codes(codes, width)


def _decode_gaps(packed: Bytes, width: int) -> Iterator[npt.NDArray[np.int64]]:
    """The positions of the non-zero entries, some at a time: a code takes much more memory here than in the file."""
    if not 2 <= width <= _MAX_WIDTH:
        raise ValueError(f"expected a code width of 2..{_MAX_WIDTH} bits, found {width}")
    end = 0
    # Blocks of whole bytes that are whole codes.
    for start in range(0, packed.size, _BLOCK_BYTES * width):
        codes = _unpack_codes(packed[start : start + _BLOCK_BYTES * width], width).astype(np.int64)
        final: Bits = codes != _escape(width)
        ends: npt.NDArray[np.int64] = np.cumsum(codes + final) + end
        yield ends[final] - 1
        end = int(ends[-1]) if ends.size else end


def _pack_codes(codes: npt.NDArray[np.uint16], width: int) -> Bytes:
    bits = np.empty((codes.size, width), dtype=np.bool_)
    for place in range(width):
        bits[:, place] = (codes >> place) & 1
    # The last byte is filled with ones: whole codes in there read as escapes, behind which no entry follows.
    return _pack_bits(np.concatenate([bits.reshape(-1), np.ones(-bits.size % 8, dtype=np.bool_)]))


def _unpack_codes(packed: Bytes, width: int) -> npt.NDArray[np.uint16]:
    count = packed.size * 8 // width
    bits = _unpack_bits(packed, packed.size * 8)[: count * width].reshape(count, width)
    codes = np.zeros(count, dtype=np.uint16)
    for place in range(width):
        codes |= bits[:, place].astype(np.uint16) << np.uint16(place)
    return codes
