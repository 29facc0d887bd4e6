"""Work on pieces of arrays, on as many threads as torch uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import count
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")

Array = NDArray[Any]

# Entries of a piece: enough that starting on it costs nothing, few enough that threads end together.
PIECE = 1 << 18


def on_threads(work: Callable[[T], R], pieces: Sequence[T]) -> list[R]:
    """What `work` answers for each piece, in order. It must let go of the interpreter's lock to gain from threads."""
    threads = min(torch.get_num_threads(), len(pieces))
    if threads < 2:
        return [work(piece) for piece in pieces]
    answers: list[Any] = [None] * len(pieces)
    # One counter for all: taking the next number is one step of the interpreter, which no other thread interrupts.
    numbers = count()

    def take() -> None:
        while (number := next(numbers)) < len(pieces):
            answers[number] = work(pieces[number])

    others = [_pool(os.getpid(), threads - 1).submit(take) for _ in range(threads - 1)]
    try:
        take()
    finally:
        for other in others:
            other.result()
    return answers


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # Of this process alone: threads do not survive a fork.
    return ThreadPoolExecutor(threads, thread_name_prefix="setpoint")


def ranges(length: int, piece: int = PIECE) -> Iterator[tuple[int, int]]:
    """Consecutive pieces of so many entries, the last one shorter."""
    return ((begin, min(length, begin + piece)) for begin in range(0, length, piece))


def in_memory(tensor: Tensor) -> Array | None:
    """A tensor's entries in the order in which they lie in memory, as a 1-D array; None where there are gaps."""
    tensor = tensor.detach()
    if not tensor.is_contiguous():
        step = 1
        for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape) if n != 1):
            if stride != step:
                return None
            step *= size
        tensor = tensor.as_strided((tensor.numel(),), (1,))
    array: Array = tensor.reshape(-1).numpy()
    return array
