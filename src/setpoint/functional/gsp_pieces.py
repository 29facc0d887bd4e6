"""Vectors of one length, and the pieces of work that they fall into."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from setpoint.functional.compiled.threads import PIECE, Array, ranges

# A sample has one of so many entries, as runs of neighbours, and one of so many rows.
_SAMPLED, _RUN = 64, 64
# Entries of a row from which on it is divided.
LONG = PIECE // 4


@dataclass(frozen=True)
class Rows:
    """Vectors of one length: what `per_mu` times mu takes off the entries of each."""

    entries: Array
    per_mu: Array
    beta: float
    # Whether each row is divided into pieces of work, or each piece is of several rows.
    long: bool
    # How many entries, and how many rows, each one stands for.
    entry_share: float = 1.0
    row_share: float = 1.0


@dataclass(frozen=True)
class Piece:
    """Some rows, or a part of a long one."""

    rows: Rows
    first: int
    last: int
    # Where a part of a row begins in it.
    begin: int
    entries: Array


def divided(vectors: Iterable[Rows]) -> list[Piece]:
    """All entries in pieces of about one size."""
    pieces = []
    for rows in vectors:
        count, length = rows.entries.shape
        if rows.long:
            for r in range(count):
                pieces += [Piece(rows, r, r + 1, a, rows.entries[r, a:b]) for a, b in ranges(length)]
        else:
            step = max(1, PIECE // length)
            pieces += [Piece(rows, a, b, 0, rows.entries[a:b]) for a, b in ranges(count, step)]
    return pieces


def sampled(rows: Rows) -> Rows:
    """Some of the entries of long rows, some of many short rows."""
    count, length = rows.entries.shape
    if rows.long:
        step = _SAMPLED * _RUN
        runs = rows.entries[:, : length // step * step].reshape(count, -1, step)[:, :, :_RUN]
        taken = np.ascontiguousarray(runs).reshape(count, -1)
        return Rows(taken, rows.per_mu, rows.beta, True, entry_share=length / taken.shape[1])
    taken = np.ascontiguousarray(rows.entries[::_SAMPLED])
    return Rows(taken, np.ascontiguousarray(rows.per_mu[::_SAMPLED]), rows.beta, False, row_share=count / len(taken))
