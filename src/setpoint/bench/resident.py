"""The resident set of a process: all of its memory, whoever allocates it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Written there, it sets the peak of the resident set to what it is now (Linux, proc(5)).
_RESET = "5"
# Of the sizes, for a first call that loads and compiles what is loaded and compiled once: large enough for kernels.
_TINY = 0.02

T = TypeVar("T")
Make = Callable[[float], Callable[[], object]]


def peak_resident(make: Make) -> int | None:
    """How far a call raises the resident set of a fresh process, in bytes; None where the system does not tell.

    Args:
        make: gives the call for a scale of its sizes; a function that another process can import, or a partial of one.
    """
    return in_a_process(_measure, make, torch.get_num_threads())


def in_a_process(call: Callable[..., T], *arguments: object) -> T:
    """The answer of a call in a fresh process.

    Raises:
        BrokenProcessPool: if the process is killed, as for want of memory.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def _measure(make: Make, threads: int) -> int | None:
    torch.set_num_threads(threads)
    make(_TINY)()
    call = make(1.0)
    gc.collect()
    try:
        _CLEAR.write_text(_RESET)
        before = _status("VmRSS")
    except (OSError, LookupError):
        return None
    answer = call()
    peak = _status("VmHWM")
    del answer
    return peak - before


def highest_resident() -> int | None:
    """The peak of this process's resident set since it began, in bytes; None where the system does not tell."""
    try:
        return _status("VmHWM")
    except (OSError, LookupError):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise LookupError(field)
