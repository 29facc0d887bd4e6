"""A run's progress on the console: bars in a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from setpoint.recipes.progress import Listener, Progress
from setpoint.reporting.measures import MEASURES
from setpoint.reporting.words import duration, percent

# Seconds between two lines: a log file is to be read by people.
_LINE_EVERY = 5.0


@contextmanager
def watch(console: Console) -> Iterator[Listener]:
    """Give a listener that shows the progress on a console as long as the context lasts."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description:<10}"), BarColumn(bar_width=24), TextColumn("{task.fields[about]}"))
    with Bars(*columns, console=console) as bars:
        yield _Bars(bars)


class _Bars:
    """A bar for the dense twin and one for the sparse run."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, progress: Progress) -> None:
        if progress.stage not in self._tasks:
            self._tasks[progress.stage] = self._bars.add_task(progress.stage, about="")
        about = "  ".join(_words(progress))
        self._bars.update(self._tasks[progress.stage], total=progress.steps, completed=progress.step, about=about)


class _Lines:
    """A line at the end of an epoch, unless there was one just before; always one for the last epoch."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = float("-inf")

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        ended = progress.row is not None
        last = ended and progress.epoch == progress.epochs
        if last or now - self._last >= _LINE_EVERY:
            self._last = now
            line = "  ".join([f"{progress.stage}:", *_words(progress)])
            self._console.print(line, highlight=False, soft_wrap=True)


def _words(progress: Progress) -> list[str]:
    words = [f"epoch {progress.epoch}/{progress.epochs}"]
    if progress.stage == "sparse":
        words.insert(0, f"{progress.phase:<8}")
    words.append(f"loss {progress.loss:.4f}")
    measure = MEASURES[progress.task]
    figure = measure.of(vars(progress), "validation")
    if figure is not None:
        words.append(f"{measure.name} {measure.words(figure)}")
    if progress.stage == "sparse":
        words.append(f"zeros {percent(progress.sparsity)}")
    if progress.remaining is not None and progress.step < progress.steps:
        words.append(f"{duration(progress.remaining)} left")
    return words
