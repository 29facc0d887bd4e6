"""Runs timed side by side, in turns, on a machine that others may use too."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
        clock: answers with seconds. `time.process_time` does not count what other processes do on a busy machine, but
            adds up all threads, and the time that they wait for each other: for one thread only.

    Raises:
        ValueError: for numbers that are not positive.
    """

    seconds: float = 0.5
    fewest: int = 11
    most: int = 101
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and 1 <= self.fewest <= self.most):
            raise ValueError(f"{self} needs seconds > 0 and 1 <= fewest <= most")

    def __call__(self, runs: Runs) -> dict[str, list[float]]:
        """Seconds of each run; those of the same index were taken one after another."""
        for run in runs.values():
            self._seconds(run, 1)
        once = {name: self._seconds(run, 1) for name, run in runs.items()}
        repeats = {name: max(1, math.ceil(_SAMPLE_SECONDS / max(taken, 1e-9))) for name, taken in once.items()}
        lasts = sum(once[name] * repeats[name] for name in runs)
        rounds = min(self.most, max(self.fewest, int(self.seconds / max(lasts, 1e-9))))
        times: dict[str, list[float]] = {name: [] for name in runs}
        for name in _turns(list(runs), rounds):
            times[name].append(self._seconds(runs[name], repeats[name]))
        return times

    def _seconds(self, run: Callable[[], object], repeats: int) -> float:
        """The time of one of so many runs in a row, what the GPU has to do included."""
        _wait()
        since = self.clock()
        for _ in range(repeats):
            run()
        _wait()
        return (self.clock() - since) / repeats


def _turns(names: list[str], rounds: int) -> Iterator[str]:
    """Every name once a round, in orders drawn anew: what a run finds in the caches depends on the one before it.

    None follows itself, as it would find its own weights there.
    """
    generator, last = random.Random(0), None
    for _ in range(rounds):
        generator.shuffle(names)
        if names[0] == last:
            names.append(names.pop(0))
        last = names[-1]
        yield from names


def gain(base: Sequence[float], other: Sequence[float]) -> float:
    """How many times faster the other is: the median of the ratios of paired times."""
    return median(one / two for one, two in zip(base, other))


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
