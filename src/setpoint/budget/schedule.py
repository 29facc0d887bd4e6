"""When the budget moves from everything to what was asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Shape = Literal["cubic", "linear", "one-shot", "constant"]
Phase = Literal["dense", "sparsify", "frozen"]


@dataclass(frozen=True)
class Schedule:
    """The phases of a run and the path of the budget between them.

    Attributes:
        shape: `"cubic"` removes most early, `1 - (1 - p)^3` (M. Zhu, S. Gupta, "To prune, or not to prune", 2017,
            section 3); `"linear"` evenly; `"one-shot"` everything at `end`; `"constant"` everything at `begin`.
        begin: last step of the dense phase: a number of optimizer steps (int) or a fraction of the run (float).
        end: the step that ends the sparsify phase, after which the support is frozen and exact; likewise.
        interval: steps between two updates in the sparsify phase. By default about 100 updates are made.

    Raises:
        ValueError: for an unknown shape, a boundary out of range, or an interval below 1.
    """

    shape: Shape = "cubic"
    begin: int | float = 0.1
    end: int | float = 0.5
    interval: int | None = None

    def __post_init__(self) -> None:
        if self.shape not in get_args(Shape):
            raise ValueError(f"schedule shape={self.shape!r} is none of {', '.join(get_args(Shape))}")
        for name in ("begin", "end"):
            value = getattr(self, name)
            if not (value >= 0 if isinstance(value, int) else 0.0 <= value <= 1.0):
                raise ValueError(f"schedule {name}={value} must be a step (int >= 0) or a fraction in [0, 1]")
        if self.interval is not None and self.interval < 1:
            raise ValueError(f"schedule interval={self.interval} must be at least 1 step")

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
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps={steps!r} must be the number of optimizer steps of the run, an int >= 1")
        begin, end = (round(v * steps) if isinstance(v, float) else v for v in (self.begin, self.end))
        if not (begin < end <= steps):
            raise ValueError(
                f"steps={steps} are too few for the phases: dense ends at step {begin}, sparsify at step {end}; "
                f"it takes begin < end <= steps (schedule begin={self.begin}, end={self.end})"
            )
        interval = self.interval or max(1, (end - begin) // 100)
        return Timeline(self, steps, begin, end, interval)


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
