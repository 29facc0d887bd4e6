"""Runs side by side, one thread each by default, that may fail or be stopped without the others being lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from typing import Any, Protocol, TypeVar


class Named(Protocol):
    """What is run: anything that can be pickled and has a name."""

    @property
    def name(self) -> str:
        """For what is told of it."""
        ...


Task = TypeVar("Task", bound=Named)


def run_pool(
    tasks: Sequence[Task],
    work: Callable[[Task], dict[str, Any]],
    done: Callable[[Task, dict[str, Any]], None],
    *,
    processes: int,
) -> int:
    """Run tasks in processes of their own; how many failed, each of which is told.

    Args:
        tasks: in the order in which they begin.
        work: runs one.
        done: called here with each result as it comes.
        processes: at a time.
    """
    failed = 0
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin)
    try:
        waiting = {pool.submit(work, task): task for task in tasks}
        for future in as_completed(waiting):
            task, error = waiting[future], future.exception()
            if error is None:
                done(task, future.result())
                continue
            failed += 1
            print(f"{task.name}: failed: {type(error).__name__}: {error}", flush=True)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in active_children():
            worker.terminate()
        raise
    pool.shutdown()
    return failed


def _begin() -> None:
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
