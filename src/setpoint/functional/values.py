"""Numbers of units, computed where they are looked at: a single weight is its own magnitude, up to its sign.

The magnitudes of all weights of a model would take as much memory as the model. What searches for a threshold or sums
over them therefore reads them in pieces that stay in a CPU's cache. On other devices there is one piece, the whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from setpoint.functional.bits import Mask
from setpoint.functional.compiled.threads import Array, on_threads, ranges

R = TypeVar("R")

# Numbers of a piece, which a core's own cache holds with what is made of them.
PIECE = 1 << 17
# Entries that torch's operators work on at a time: in the cache, and too few for them to start threads of their own.
BLOCK = 1 << 15

# Numbers that are computed are sampled in longer runs, and fewer.
_LONGER = 16

_EXACT = (torch.float32, torch.float64)


class Values(ABC):
    """A non-negative number for each unit of a layer, in float32 or float64.

    Args:
        shape: of the numbers.
        device: where they are.
        dtype: float32 or float64.
    """

    def __init__(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> None:
        self.shape, self.device, self.dtype = torch.Size(shape), device, dtype

    def numel(self) -> int:
        """How many there are."""
        return self.shape.numel()

    @abstractmethod
    def block(self, begin: int, end: int) -> Tensor:
        """The numbers from `begin` up to `end`, in the order of the indices: 1-D, not to be written to."""

    def piece(self, begin: int, end: int) -> Array:
        """The same of numbers on the CPU, as an array."""
        out = np.empty(end - begin, np.float64 if self.dtype == torch.float64 else np.float32)
        for a, b in ranges(end - begin, BLOCK):
            out[a:b] = self.block(begin + a, begin + b).numpy()
        return out

    def sample(self, step: int, run: int) -> Array:
        """Runs of neighbours of numbers on the CPU: so many of every `step`."""
        longer = run * _LONGER
        starts = range(0, self.numel(), step * _LONGER)
        return np.concatenate([self.piece(0, 0), *(self.piece(a, min(self.numel(), a + longer)) for a in starts)])

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Where blocks begin and end: of a size that a CPU's cache holds; on other devices all at once."""
        return ranges(self.numel(), BLOCK) if self.device.type == "cpu" else iter([(0, self.numel())])

    def tensor(self) -> Tensor:
        """All of them, as a new tensor."""
        out = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        flat = out.view(-1)
        for begin, end in self.blocks():
            flat[begin:end] = self.block(begin, end)
        return out

    @cached_property
    def peak(self) -> Tensor:
        """The largest, 0 of none, NaN if any is NaN: 0-dimensional."""
        return self._largest()

    def _largest(self) -> Tensor:
        if self.numel() == 0:
            return torch.zeros((), dtype=self.dtype, device=self.device)
        if self.device.type != "cpu":
            return self.block(0, self.numel()).amax()
        (peaks,) = each_piece([self], lambda _, a, b: self.piece(a, b).max())
        # The largest is NaN if any is.
        return torch.as_tensor(np.max(peaks))


class Entries(Values):
    """The sizes of some entries, by a divisor.

    Args:
        entries: of any sign and real floating dtype.
        divisor: a 0-dimensional tensor of the numbers' dtype on the entries' device, above 0; 1 by default.
        signed: whether there may be negative ones.
    """

    def __init__(self, entries: Tensor, divisor: Tensor | None = None, *, signed: bool = True) -> None:
        entries = entries.detach()
        super().__init__(entries.shape, entries.device, exact_dtype(entries))
        self.entries, self.divisor, self.signed = entries, divisor, signed
        self._undivided: Entries | None = None
        self._flat = entries.reshape(-1)
        self._array: Array | None = None
        self._by = None if divisor is None or entries.device.type != "cpu" else divisor.numpy()[()]
        if entries.device.type == "cpu" and entries.dtype in _EXACT:
            self._array = self._flat.numpy()

    def over(self, divisor: Tensor) -> Entries:
        """The same divided by a number."""
        assert self.divisor is None
        quotients = Entries(self.entries, divisor, signed=self.signed)
        # Division keeps the order: the largest stays where it is.
        quotients._undivided = self
        return quotients

    def _largest(self) -> Tensor:
        if self._undivided is not None and self.divisor is not None:
            return self._undivided.peak / self.divisor
        if self.divisor is not None or self.numel() == 0:
            return super()._largest()
        low, high = torch.aminmax(self._flat)
        return torch.maximum(-low, high).to(self.dtype)

    def norm(self) -> Tensor:
        """The l2 norm of all of them, as if they were a tensor: 0-dimensional."""
        assert self.divisor is None
        norm: Tensor = torch.linalg.vector_norm(self._flat, dtype=self.dtype)
        return norm

    def block(self, begin: int, end: int) -> Tensor:
        """Sizes of some entries."""
        part = self._flat[begin:end].to(self.dtype)
        part = part.abs() if self.signed else part
        return part if self.divisor is None else part / self.divisor

    def piece(self, begin: int, end: int) -> Array:
        """The same as an array."""
        return super().piece(begin, end) if self._array is None else self._sizes(self._array[begin:end])

    def sample(self, step: int, run: int) -> Array:
        """The same of runs of neighbours."""
        if self._array is None:
            return super().sample(step, run)
        whole = self.numel() // step * step
        runs = self._array[:whole].reshape(-1, step)[:, :run].reshape(-1)
        return self._sizes(np.concatenate([runs, self._array[whole:][:run]]))

    def _sizes(self, part: Array) -> Array:
        part = np.abs(part) if self.signed else part
        return part if self._by is None else np.divide(part, self._by, out=part if self.signed else None)

    def tensor(self) -> Tensor:
        """Sizes of all entries."""
        whole = self.entries.to(self.dtype)
        whole = whole.abs() if self.signed else whole
        return whole if self.divisor is None else whole / self.divisor


class Computed(Values):
    """Numbers that a function answers.

    Args:
        like: of the shape, and on the device.
        dtype: of what is answered.
        function: the numbers from one index up to another, 1-D and on the device.
    """

    def __init__(self, like: Values, dtype: torch.dtype, function: Callable[[int, int], Tensor]) -> None:
        super().__init__(like.shape, like.device, dtype)
        self._function = function

    def block(self, begin: int, end: int) -> Tensor:
        """What the function answers."""
        return self._function(begin, end)


class Among(Values):
    """The numbers of some units, above 0 even where they are not, and 0 for all others.

    Args:
        values: of all units.
        mask: which are among them.
        wanted: whether these are the True or the False entries.
    """

    def __init__(self, values: Values, mask: Mask, wanted: bool = True) -> None:
        super().__init__(values.shape, values.device, values.dtype)
        self._values, self._mask, self._wanted = values, mask, wanted
        self._least = torch.finfo(values.dtype).tiny

    def block(self, begin: int, end: int) -> Tensor:
        """Numbers of those that are among them."""
        part = self._mask.piece(begin, end)
        return self._values.block(begin, end).clamp_min(self._least) * (part if self._wanted else ~part)

    def piece(self, begin: int, end: int) -> Array:
        """The same as an array."""
        numbers = self._values.piece(begin, end)
        found: Array = np.maximum(numbers, numbers.dtype.type(self._least))
        part = self._mask.array(begin, end)
        np.multiply(found, part if self._wanted else np.logical_not(part), out=found)
        return found


def readable(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors can be read in pieces: plain ones of one precision on the CPU."""
    return len({exact_dtype(t) for t in tensors}) == 1 and all(
        t.device.type == "cpu"
        and t.is_floating_point()
        and t.layout is torch.strided
        and type(t) in (Tensor, torch.nn.Parameter)
        for t in tensors
    )


def exact_dtype(tensor: Tensor) -> torch.dtype:
    """In which numbers are reckoned with: float32, or float64 where they are."""
    return tensor.dtype if tensor.dtype in _EXACT else torch.float32


def each_piece(values: Sequence[Values], work: Callable[[int, int, int], R]) -> list[list[R]]:
    """What `work` answers for each piece of values on the CPU, on threads: by layer, in order.

    Args:
        values: of the layers.
        work: called with the number of the layer, and where in it a piece begins and ends.
    """
    pieces = [(i, a, b) for i, layer in enumerate(values) for a, b in ranges(layer.numel(), PIECE)]
    found: list[list[R]] = [[] for _ in values]
    for (i, _, _), answer in zip(pieces, on_threads(lambda piece: work(*piece), pieces)):
        found[i].append(answer)
    return found
