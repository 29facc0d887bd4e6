"""Runs timed side by side, in turns, on a machine that others may use too."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

Runs = Mapping[str, Callable[[], object]]
Timer = Callable[[Runs], Mapping[str, Sequence[float]]]

# Shorter samples than this are of several runs in a row: the clock's own time would show.
_SAMPLE_SECONDS = 1e-4


@dataclass(frozen=True)
class Race:
    """Times runs in turns, so that what slows the machine down for a while slows all of them.

    Args:
        seconds: to spend on one race, about; runs that take long take longer, those that are sure to be few.
        fewest, most: rounds.

    Raises:
        ValueError: for numbers that are not positive.
    """

    seconds: float = 0.5
    fewest: int = 11
    most: int = 101

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and 1 <= self.fewest <= self.most):
            raise ValueError(f"{self} needs seconds > 0 and 1 <= fewest <= most")

    def __call__(self, runs: Runs) -> dict[str, list[float]]:
        """Seconds of each run; those of the same index were taken one after another."""
        for run in runs.values():
            _seconds(run, 1)
        once = {name: _seconds(run, 1) for name, run in runs.items()}
        repeats = {name: max(1, math.ceil(_SAMPLE_SECONDS / max(taken, 1e-9))) for name, taken in once.items()}
        lasts = sum(once[name] * repeats[name] for name in runs)
        rounds = min(self.most, max(self.fewest, int(self.seconds / max(lasts, 1e-9))))
        times: dict[str, list[float]] = {name: [] for name in runs}
        for i in range(rounds):
            # There and back, so that none always follows the same one.
            for name in list(runs)[:: 1 if i % 2 else -1]:
                times[name].append(_seconds(runs[name], repeats[name]))
        return times


def gain(base: Sequence[float], other: Sequence[float]) -> float:
    """How many times faster the other is: the median of the ratios of paired times."""
    return median(one / two for one, two in zip(base, other))


def _seconds(run: Callable[[], object], repeats: int) -> float:
    """The time of one of so many runs in a row, what the GPU has to do included."""
    _wait()
    since = time.perf_counter()
    for _ in range(repeats):
        run()
    _wait()
    return (time.perf_counter() - since) / repeats


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
