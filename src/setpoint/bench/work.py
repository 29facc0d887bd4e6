"""Pieces of work that are timed in turns, and the rows of figures that come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from setpoint.budget.timing import medians


@dataclass(frozen=True)
class Work:
    """Something to time beside other things.

    Attributes:
        name: what it is.
        call: does it; called without arguments. None where it cannot be done here, for which `note` has the reason.
        against: the name of the work of the same case that its time is divided by; by default its own.
        check: what is to be known of the answer beside the time, such as how far it is from what was asked.
        note: what else a reader has to know.
    """

    name: str
    call: Callable[[], Any] | None
    against: str | None = None
    check: Callable[[Any], Mapping[str, float]] | None = None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One figure: a ratio, what it is against, and what goes with it.

    Attributes:
        case: on what it was measured.
        work: what was measured.
        ratio: None where it could not be measured; `note` says why.
        against: what the ratio is against, measured in the same run.
        ms: the median time in milliseconds, of a time.
        figures: further figures by name, such as the error of an answer.
        note: what else a reader has to know.
    """

    case: str
    work: str
    ratio: float | None
    against: str
    ms: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they go into JSON."""
        return asdict(self) | {"figures": dict(self.figures)}


@dataclass(frozen=True)
class Pace:
    """How often each piece of work is timed.

    Attributes:
        repeats: at most, and three times in any case.
        seconds: after which no further round of a case begins.
        warm_up: rounds before the first that counts.
    """

    repeats: int = 15
    seconds: float = 120.0
    warm_up: int = 1

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.warm_up < 0 or not self.seconds > 0:
            raise ValueError(
                f"repeats={self.repeats}, warm_up={self.warm_up} and seconds={self.seconds} were asked for; at least "
                "one repeat, no fewer than zero rounds to warm up, and more than zero seconds are possible"
            )


def in_turns(case: str, works: Sequence[Work], device: torch.device, pace: Pace) -> list[Row]:
    """Do all works once for what is to be known of their answers, then time them in turns.

    Raises:
        ValueError: for works of one name, or a work against one that is not there.
    """
    possible = {work.name: work for work in works if work.call is not None}
    if len({work.name for work in works}) < len(works):
        raise ValueError(f"several works of {case!r} have one name: {', '.join(work.name for work in works)}")
    for work in possible.values():
        if work.against is not None and work.against not in possible:
            raise ValueError(f"{work.name!r} is measured against {work.against!r}, which is no work of {case!r}")
    figures = {name: _checked(work) for name, work in possible.items()}
    calls = [work.call for work in possible.values() if work.call is not None]
    taken = medians(calls, device, repeats=pace.repeats, seconds=pace.seconds, warm_up=pace.warm_up)
    times = dict(zip(possible, taken))
    return [_row(case, work, times, figures) for work in works]


def _checked(work: Work) -> dict[str, float]:
    if work.call is None or work.check is None:
        return {}
    return dict(work.check(work.call()))


def _row(case: str, work: Work, times: Mapping[str, float], figures: Mapping[str, Mapping[str, float]]) -> Row:
    against = work.against or work.name
    if work.name not in times:
        return Row(case, work.name, None, against, note=work.note)
    ratio = times[work.name] / times[against]
    return Row(case, work.name, ratio, against, times[work.name], figures[work.name], work.note)
