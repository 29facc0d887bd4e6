"""Booleans as bits: masks take an eighth of a byte an entry where they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Mask:
    """Booleans in the shape of a tensor, kept as bits on the CPU; on other devices as a boolean tensor.

    On the CPU memory is what a large model is short of. On a GPU every operation counts, and the masks are read at
    each step.

    Args:
        shape: of the tensor.
        device: where the tensor is.

    Attributes:
        shape, device: the same. All entries are False at first.
    """

    def __init__(self, shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.shape, self.device = torch.Size(shape), torch.device(device)
        size = -(-self.numel() // 8) if self.packs else self.numel()
        self._held = torch.zeros(size, dtype=torch.uint8 if self.packs else torch.bool, device=self.device)

    @property
    def packs(self) -> bool:
        """Whether it is kept as bits: on the CPU."""
        return self.device.type == "cpu"

    @classmethod
    def of(cls, entries: Tensor | Mask) -> Mask:
        """The entries of a tensor that are not zero, or are True."""
        if isinstance(entries, Mask):
            return entries
        mask = cls(entries.shape, entries.device)
        mask.put(0, entries)
        return mask

    @classmethod
    def unpacked(cls, packed: Tensor, shape: Sequence[int], device: torch.device | str = "cpu") -> Mask:
        """A mask from its `packed` form.

        Raises:
            ValueError: if the number of bytes does not fit the shape.
        """
        mask = cls(shape, device)
        if mask.packs:
            _check_bytes(packed, mask.shape)
            mask._held = packed.to("cpu", torch.uint8, copy=True)
            if mask.numel() % 8:
                # Bits beyond the last entry would be counted.
                mask._held[-1] &= (1 << mask.numel() % 8) - 1
        else:
            mask._held = unpack_bits(packed, (mask.numel(),)).to(mask.device)
        return mask

    @property
    def packed(self) -> Tensor:
        """Eight entries a byte, the first in the lowest bit: 1-D, uint8, on the CPU. Of a mask there it is the same."""
        return self._held if self.packs else pack_bits(self._held)

    @property
    def stored(self) -> Tensor:
        """As it is kept: packed on the CPU, booleans on other devices."""
        return self._held

    @classmethod
    def restored(cls, stored: Tensor, shape: Sequence[int], device: torch.device | str = "cpu") -> Mask:
        """A mask of what was `stored`, of one on this device or on another."""
        device = torch.device(device)
        if stored.dtype is torch.uint8:
            if device.type != "cpu":
                return cls.unpacked(stored, shape, device)
            _check_bytes(stored, shape)
            mask = cls((0,))
            mask.shape = torch.Size(shape)
            return mask._with(stored.cpu())
        return cls.of(stored.to(device).reshape(tuple(shape)))

    def numel(self) -> int:
        """How many entries there are."""
        return prod(self.shape)

    def piece(self, begin: int, end: int) -> Tensor:
        """Entries from `begin` up to `end`, in the order of the indices: 1-D, bool, not to be written to."""
        if not self.packs:
            return self._held[begin:end]
        return torch.from_numpy(self.array(begin, end))

    def array(self, begin: int, end: int) -> NDArray[np.bool_]:
        """The same of a mask on the CPU, as an array."""
        first = begin // 8
        held = self._held[first : -(-end // 8)].numpy()
        bits = np.unpackbits(held, bitorder="little")[begin - 8 * first : end - 8 * first]
        return bits.view(np.bool_)

    def put(self, begin: int, entries: Tensor) -> None:
        """Set the entries from `begin` on, which is a multiple of 8, up to a multiple of 8 or to the end."""
        flat = entries.detach().reshape(-1)
        flat = flat if flat.dtype is torch.bool else flat != 0
        if self.packs:
            bits = np.packbits(flat.cpu().numpy(), bitorder="little")
            self._held[begin // 8 : begin // 8 + len(bits)] = torch.from_numpy(bits)
        else:
            self._held[begin : begin + flat.numel()] = flat

    def view(self) -> Tensor:
        """All entries as a boolean tensor, not to be written to."""
        return self.piece(0, self.numel()).reshape(self.shape)

    def tensor(self) -> Tensor:
        """All entries as a new boolean tensor."""
        return self.view() if self.packs else self.view().clone()

    def count(self) -> Tensor:
        """How many entries are True: a number on the mask's device, int64."""
        if not self.packs:
            return torch.count_nonzero(self._held)
        return torch.tensor(int(_BITS_IN[self._held.numpy()].sum(dtype=np.int64)))

    def __or__(self, other: Mask) -> Mask:
        """The entries that are True in either, of masks of one shape and device."""
        return self._with(self._held | other._held)

    def without(self, other: Mask) -> Mask:
        """The entries that are True here and not there, of masks of one shape and device."""
        return self._with(self._held & ~other._held)

    def _with(self, held: Tensor) -> Mask:
        made = Mask((0,), self.device)
        made.shape, made._held = self.shape, held
        return made

    def __repr__(self) -> str:
        return f"Mask({tuple(self.shape)}, {str(self.device)!r})"


class Masks(Sequence[Tensor]):
    """Masks of some layers as boolean tensors, each made when it is asked for.

    Attributes:
        masks: as they are stored.
    """

    def __init__(self, masks: Sequence[Mask]) -> None:
        self.masks = tuple(masks)

    def __len__(self) -> int:
        return len(self.masks)

    def of(self, numbers: Iterable[int]) -> Masks:
        """Those of some numbers."""
        return Masks([self.masks[i] for i in numbers])

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Masks: ...
    def __getitem__(self, index: int | slice) -> Tensor | Masks:
        return Masks(self.masks[index]) if isinstance(index, slice) else self.masks[index].tensor()


# How many of the eight bits of each byte are set.
_BITS_IN = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)


def pack_bits(mask: Tensor) -> Tensor:
    """Eight booleans a byte, the first in the lowest bit: a 1-D uint8 tensor on the CPU."""
    flat = mask.detach().cpu().flatten().bool().numpy()
    return torch.from_numpy(np.packbits(flat, bitorder="little"))


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `pack_bits`: a boolean tensor on the CPU.

    Raises:
        ValueError: if the number of bytes does not fit the shape.
    """
    _check_bytes(packed, shape)
    bits = np.unpackbits(packed.cpu().numpy(), count=prod(shape), bitorder="little")
    return torch.from_numpy(bits.view(np.bool_)).reshape(tuple(shape))


def _check_bytes(packed: Tensor, shape: Sequence[int]) -> None:
    count = prod(shape)
    if len(packed) != -(-count // 8):
        raise ValueError(f"{len(packed)} bytes cannot hold the {count} bits of a mask of shape {tuple(shape)}")
