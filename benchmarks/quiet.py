"""Measurements on a machine that others use as well: taken while they do little, or said to be disturbed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


# Cores that others may use while something is measured.
QUIET = 0.1


def measured_quietly(measure: Callable[[], T], *, patience: float) -> tuple[T, float | None]:
    """Measure while other processes use few of the cores.

    Args:
        measure: what to do; again, if it was disturbed.
        patience: seconds after which the least disturbed measurement is taken.

    Returns:
        The measurement, and how many cores others used; None where the system does not tell.
    """
    if _others() is None:
        return measure(), None
    until, best, used = time.perf_counter() + patience, None, float("inf")
    while used > QUIET and (best is None or time.perf_counter() < until):
        if time.perf_counter() < until and _watched(lambda: time.sleep(0.5))[1] > QUIET:
            continue
        result, cores = _watched(measure)
        if cores < used:
            best, used = (result,), cores
    assert best is not None
    return best[0], used


def _watched(action: Callable[[], T]) -> tuple[T, float]:
    """What it answers, and the cores that other processes used meanwhile."""
    before, since = _others() or 0.0, time.perf_counter()
    result = action()
    return result, max(0.0, ((_others() or 0.0) - before) / (time.perf_counter() - since))


def _others() -> float | None:
    """Seconds that all cores spent so far on anything but this process and idling."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _idle, _wait, interrupts, soft, stolen = map(int, stat.read_text().split()[1:9])
    busy = (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
    return busy - time.process_time()
