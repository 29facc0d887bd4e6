"""Things by number, so that what is one stays one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Table(Generic[T]):
    """Objects by number, each once; new ones are put into a queue, with the path where they were found."""

    def __init__(self, queue: list[tuple[object, str]]) -> None:
        self._queue = queue
        self._numbers: dict[int, int] = {}

    def number(self, entry: T, path: str) -> int:
        """The number of an object."""
        if id(entry) not in self._numbers:
            self._numbers[id(entry)] = len(self._numbers)
            self._queue.append((entry, path))
        return self._numbers[id(entry)]


def entry_of(table: Sequence[T], number: object) -> T:
    """An entry of a table.

    Raises:
        LookupError: If there is none of that number.
    """
    if type(number) is not int or not 0 <= number < len(table):
        raise LookupError(f"there is no entry {number!r}")
    return table[number]
