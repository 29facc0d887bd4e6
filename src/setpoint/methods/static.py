"""A support that never moves: what the methods that move it are compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from setpoint.budget import Schedule, Timeline
from setpoint.methods.support import DrawnSupport


@dataclass(frozen=True)
class Static(DrawnSupport):
    """Train what was drawn before the first step.

    With `initial="magnitude"` on a trained model it is pruning at once, and fine-tuning.
    """

    name: ClassVar[str] = "static"

    def timeline(self, schedule: Schedule | None, steps: int) -> Timeline:
        """Phases without updates."""
        line = super().timeline(schedule, steps)
        return replace(line, interval=line.end)
