"""When the budget moves from everything to what was asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from setpoint.options import choice, read_fields, whole_number

Shape = Literal["cubic", "linear", "one-shot", "constant"]
Phase = Literal["dense", "sparsify", "frozen"]


@dataclass(frozen=True)
class Schedule:
    """The phases of a run and the path of the budget between them.

    Attributes:
        shape: `"cubic"` removes most early, `1 - (1 - p)^3` (M. Zhu, S. Gupta, "To prune, or not to prune", 2017,
            section 3); `"linear"` evenly; `"one-shot"` everything at `end`; `"constant"` everything at `begin`.
        begin: last step of the dense phase: a number of optimizer steps (int) or a fraction of the run (float); 1 is
            the first step, and 1.0 the end of the run.
        end: the step that ends the sparsify phase, after which the support is frozen and exact; likewise.
        interval: steps between two updates in the sparsify phase. By default about 100 updates are made.

    Raises:
        ValueError: for an unknown shape, a boundary out of range or of another kind, or an interval below 1.
    """

    shape: Shape = "cubic"
    begin: int | float = 0.1
    end: int | float = 0.5
    interval: int | None = None

    def __post_init__(self) -> None:
        read_fields(self, "schedule")
        choice("schedule shape", self.shape, get_args(Shape))
        for name in ("begin", "end"):
            value = getattr(self, name)
            if not (value >= 0 if isinstance(value, int) else 0.0 <= value <= 1.0):
                raise ValueError(f"schedule {name}={value} must be a step (int >= 0) or a fraction in [0, 1]")
        if self.interval is not None and self.interval < 1:
            raise ValueError(f"schedule interval={self.interval} must be at least 1 step")

    @classmethod
    def of(cls, schedule: Schedule | Shape | None) -> Schedule | None:
        """Read `"linear"` as `Schedule("linear")`.

        Raises:
            ValueError: for what is neither a shape's name nor a schedule.
        """
        if schedule is None or isinstance(schedule, Schedule):
            return schedule
        if not isinstance(schedule, str):
            raise ValueError(
                f"schedule={schedule!r} must be a setpoint.Schedule, or the name of a shape: "
                f"{', '.join(get_args(Shape))}"
            )
        return cls(schedule)

    def ramp(self, progress: float) -> float:
        """How much of the way the budget has moved, in [0, 1], at a progress in [0, 1] through the phase."""
        if progress >= 1.0 or self.shape == "constant":
            return 1.0
        if self.shape == "cubic":
            return float(1.0 - (1.0 - progress) ** 3)
        return progress if self.shape == "linear" else 0.0

    def timeline(self, steps: int) -> Timeline:
        """Fix the boundaries for a run of `steps` optimizer steps.

        Raises:
            ValueError: if the steps leave no room for the phases.
        """
        steps = whole_number("steps", steps, 1, "the number of optimizer steps of the run,")
        begin, end = (round(v * steps) if isinstance(v, float) else v for v in (self.begin, self.end))
        self._check_order(begin, end, steps)
        interval = self.interval or max(1, (end - begin) // 100)
        return Timeline(self, steps, begin, end, interval)

    def _check_order(self, begin: int, end: int, steps: int) -> None:
        if type(self.begin) is type(self.end) and self.begin >= self.end:
            raise ValueError(f"schedule begin={self.begin} must come before end={self.end}")
        if end > steps:
            raise ValueError(f"schedule end={self.end} lies beyond the run, which has steps={steps}")
        if begin >= end:
            raise ValueError(
                f"steps={steps} are too few for schedule begin={self.begin} and end={self.end}: dense would end at "
                f"step {begin} and sparsify at step {end}, and it takes at least one step between them"
            )


@dataclass(frozen=True)
class Timeline:
    """A schedule with its boundaries in steps."""

    schedule: Schedule
    steps: int
    begin: int
    end: int
    interval: int

    def phase(self, step: int) -> Phase:
        """The phase that the run is in once `step` steps have been taken."""
        return "dense" if step < self.begin else "sparsify" if step < self.end else "frozen"

    def updates(self, step: int) -> bool:
        """Whether the units are worked on right after this step."""
        if self.schedule.shape == "one-shot":
            return False
        return self.begin < step < self.end and (step - self.begin) % self.interval == 0

    def progress(self, step: int) -> float:
        """How much of the sparsify phase has passed after `step` steps, in [0, 1]."""
        return min(max((step - self.begin) / (self.end - self.begin), 0.0), 1.0)

    def ramp(self, step: int) -> float:
        """How much of the way the budget has moved after `step` steps."""
        return 0.0 if step < self.begin else self.schedule.ramp(self.progress(step))
