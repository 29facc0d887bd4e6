"""How long a piece of work takes on a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
import torch.distributed

# Passes before the clock is read: the first ones allocate memory and choose kernels.
_WARM_UP = 2


def medians(
    works: Sequence[Callable[[], object]],
    device: torch.device,
    *,
    repeats: int = 30,
    seconds: float = float("inf"),
    warm_up: int = _WARM_UP,
) -> list[float]:
    """The median time of each piece of work in milliseconds.

    They are timed in turns, so that what slows the machine down slows all of them.

    Args:
        works: called without arguments.
        device: where they run; its work is waited for.
        repeats: how often each is timed at most.
        seconds: after which no further round begins; three rounds are made in any case.
        warm_up: rounds before the first that counts.
    """
    times: list[list[float]] = [[] for _ in works]
    begun = time.perf_counter()
    for round_ in range(-warm_up, repeats):
        if round_ >= 3 and time.perf_counter() - begun > seconds:
            break
        for work, taken in zip(works, times):
            since = _now(device)
            work()
            if round_ >= 0:
                taken.append(_now(device) - since)
    return [1e3 * median(taken) for taken in times]


def _now(device: torch.device) -> float:
    """The time at which the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def agreed(times: list[float], device: torch.device) -> list[float]:
    """The first rank's times on all of them: they decide what stays, which must be the same everywhere."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return times
    on = device if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
    shared = torch.tensor(times, dtype=torch.float64, device=on)
    torch.distributed.broadcast(shared, 0)
    return [float(t) for t in shared]
