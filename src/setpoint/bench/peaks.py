"""The most memory that tensors take within parts of a program."""

from __future__ import annotations

import gc
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

# What windows are called among the profiler's events, and what its records of memory are.
_MARK, _EVENT = "setpoint.bench: ", "[memory]"


class Meter:
    """Follows what tensors take on a device, from when it is entered.

    On a CPU by the profiler's record of every allocation and release, which is exact and knows nothing of what
    allocates outside of torch; on a GPU by the allocator's own count. What was there before counts as nothing.

    Args:
        device: whose memory.

    Attributes:
        peaks: by the names of the windows, the most that was taken at any time inside of them, in bytes; known once
            the meter is left. A name may be used several times.
    """

    def __init__(self, device: torch.device) -> None:
        self.peaks: dict[str, int] = {}
        self._device = device
        self._stack = ExitStack()
        self._profile: Any = None
        self._before = 0

    def __enter__(self) -> Meter:
        gc.collect()
        # The profiler writes lines of its own to the standard error otherwise.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            self._profile = self._stack.enter_context(profile(activities=[ProfilerActivity.CPU], profile_memory=True))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        if self._profile is not None:
            self.peaks = _peaks(self._profile.profiler.kineto_results.events())
            self._profile = None

    @contextmanager
    def window(self, name: str) -> Iterator[None]:
        """Measure what is done inside; no window may lie in another."""
        if self._device.type != "cuda":
            with record_function(_MARK + name):
                yield
            return
        torch.cuda.reset_peak_memory_stats(self._device)
        yield
        torch.cuda.synchronize(self._device)
        reached = torch.cuda.max_memory_allocated(self._device) - self._before
        self.peaks[name] = max(reached, self.peaks.get(name, 0))


def _peaks(events: Any) -> dict[str, int]:
    """By the names of the windows, the highest level of all memory inside of them."""
    changes, windows = [], []
    for event in events:
        name = event.name()
        if name == _EVENT and event.device_type() == DeviceType.CPU:
            changes.append((event.start_ns(), event.nbytes()))
        elif name.startswith(_MARK):
            windows.append((name.removeprefix(_MARK), event.start_ns(), event.start_ns() + event.duration_ns()))
    changes.sort()
    times, levels = [at for at, _ in changes], [0, *accumulate(change for _, change in changes)]
    peaks: dict[str, int] = {}
    for name, begin, end in windows:
        # From the level at the beginning on.
        inside = levels[bisect_left(times, begin) : bisect_right(times, end) + 1]
        peaks[name] = max(max(inside), peaks.get(name, inside[0]))
    return peaks
