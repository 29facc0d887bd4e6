"""A support that moves: at every update the smallest units are dropped, and as many others grow."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from setpoint.budget import Schedule, Timeline
from setpoint.functional.budget import project_budget
from setpoint.methods.base import Units
from setpoint.methods.draws import seeded
from setpoint.methods.growth import plant
from setpoint.methods.support import DrawnSupport, roots
from setpoint.options import choice
from setpoint.reading import beside, count, read

Decay = Literal["cosine", "linear", "constant"]
Begin = Literal["zero", "random"]
SecondMoment = Literal["zero", "mean"]

# Steps between two updates in RigL's paper.
_INTERVAL = 100
# One cut decides what grows. Its scores put what survives above all that may grow, so that it always stays; then what
# is wanted, in [0, 1]; then what is not wanted at all; and last what was dropped a moment ago, if it may not come back.
# Squares of them, and sums over the squares, are still far from the bounds of float64.
_SURVIVES, _UNWANTED, _DROPPED = 1e5, 1e-40, 1e-80


@dataclass(frozen=True)
class MovingSupport(DrawnSupport):
    """Drop a fraction of the units that stay, and grow others in their place, within the same budget.

    An update comes before the optimizer's step, which moves what has survived; what has grown moves from the next step
    on. Where the schedule leaves the interval open it is 100 steps, as in RigL's paper, or what makes 10
    updates in a shorter run and 100 in a longer one.

    Attributes:
        drop_fraction: of the units that stay, how many are dropped at the first update, in (0, 1]; never more than can
            grow instead.
        decay: how that fraction falls to zero at the end of the phase in which the support moves: as a cosine,
            `(1 + cos(pi p)) / 2` at the progress p, linearly, or not at all.
        regrow: whether what was dropped may grow again in the same update. It begins anew like all that grows.
        begin: weights that grow are zero at first, so that growing changes nothing; or random, with the mean and the
            deviation of the survivors. Zero filters and rows whose bias is negative are dead behind a ReLU: those of
            gradient zero, which `rigl` avoids. Of units that cross layers, see `setpoint.methods.growth.plant`.
        second_moment: of Adam and its kin, what new weights begin with: zero, with which their first step late in the
            run is 3.16 times the learning rate whatever their gradient, or the mean over the old ones in their
            parameter, with which they move as those do.
        replace_step: leave out the optimizer's step of these weights at an update, rather than take it as well.
    """

    drop_fraction: float = 0.3
    decay: Decay = "cosine"
    regrow: bool = True
    begin: Begin = "zero"
    second_moment: SecondMoment = "zero"
    replace_step: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.drop_fraction <= 1.0:
            raise ValueError(f"{self.name} drop_fraction={self.drop_fraction} must lie in (0, 1]")
        for field, kind in (("decay", Decay), ("begin", Begin), ("second_moment", SecondMoment)):
            choice(f"{self.name} {field}", getattr(self, field), get_args(kind))

    def timeline(self, schedule: Schedule | None, steps: int) -> Timeline:
        """Give what has grown the time to become large before the next update."""
        line = super().timeline(schedule, steps)
        if line.schedule.interval is not None:
            return line
        return replace(line, interval=max(line.interval, min(_INTERVAL, line.end // 10)))

    def fraction(self, progress: float) -> float:
        """Of the units that stay, the fraction to drop at a progress in [0, 1] through the phase."""
        left = {"cosine": 0.5 * (1.0 + math.cos(math.pi * progress)), "linear": 1.0 - progress, "constant": 1.0}
        return self.drop_fraction * left[self.decay]

    def gauges(self, units: Units) -> dict[str, float]:
        """Of the units that stay, the fraction that is new; and of all units, the fraction that was ever there.

        The second is the coverage of S. Liu et al., "Do we actually need dense over-parameterization?", ICML 2021.
        """
        seen = units.memory["seen"]
        return {
            "moved": units.memory["moved"],
            "covered": count(seen) / sum(s.numel() for s in seen),
        }

    @abstractmethod
    def _wanted(self, units: Units, prices: Sequence[Tensor]) -> Sequence[Tensor]:
        """How much each unit is wanted for its price, in [0, 1], of those that may grow."""

    def _draw(self, units: Units) -> Sequence[Tensor]:
        kept = super()._draw(units)
        units.memory.update(seen=list(kept), moved=0.0)
        return kept

    def _move(self, units: Units, kept: Sequence[Tensor]) -> Sequence[Tensor]:
        prices = units.budget.prices(kept)
        survivors = self._survivors(units, kept, prices)
        units.memory["moved"] = 0.0
        if survivors is not None:
            before, kept = kept, self._grown(units, kept, survivors, prices)
            for layer, now, old in zip(units.layers, kept, survivors):
                generator = seeded(layer.device, self.seed, units.step, f"{layer.name} values")
                random, warm = self.begin == "random", self.second_moment == "mean"
                plant(layer, now & ~old, old, units.optimizers, generator, random=random, warm=warm)
            new = count(now & ~old for now, old in zip(kept, before))
            units.memory["moved"] = new / count(kept)
            units.memory["seen"] = [seen.to(now.device) | now for seen, now in zip(units.memory["seen"], kept)]
        if self.replace_step:
            for part in (part for layer in units.layers for part in layer.parts):
                part.parameter.grad = None
        return kept

    def _survivors(self, units: Units, kept: Sequence[Tensor], prices: Sequence[Tensor]) -> list[Tensor] | None:
        """What is not dropped: all but the smallest units, by magnitude for their price. None if all survive."""
        free = [beside(price <= 0, k.device) & k for price, k in zip(prices, kept)]
        there = count(k & ~f for k, f in zip(kept, free))
        outside = count(~k for k in kept)
        # A hair more: 0.29 * 100 is below 29 in floating point.
        drop = min(int(self.fraction(units.progress) * there + 1e-9), outside)
        if drop == 0:
            self._warn(units, there, outside)
            return None
        ranks = [m.double() / root for m, root in zip(units.compared(None), roots(units, prices))]
        top = max(read([rank.max() for rank in ranks if rank.numel()])) or 1.0
        # What stays comes before all that does not, though it may be zero itself.
        ranks = [torch.where(k & ~f, rank / top + 1e-30, 0.0) for rank, k, f in zip(ranks, kept, free)]
        return [s | f for s, f in zip(project_budget(ranks, there - drop), free)]

    def _grown(
        self, units: Units, kept: Sequence[Tensor], survivors: Sequence[Tensor], prices: Sequence[Tensor]
    ) -> list[Tensor]:
        """The survivors, and of the other units the most wanted that the budget has room for."""
        scores = []
        pull = self._wanted(units, prices)
        least = read([wanted.min() if wanted.numel() else wanted.new_ones(()) for wanted in pull])
        for layer, low, wanted, k, s, root in zip(units.layers, least, pull, kept, survivors, roots(units, prices)):
            if not low > 0:
                wanted = torch.where(wanted > 0, wanted, _UNWANTED * self._random(units, layer))
            if not self.regrow:
                wanted = torch.where(k, _DROPPED * wanted, wanted)
            scores.append(torch.where(s, _SURVIVES, wanted) * root)
        return units.cut(scores)

    def _warn(self, units: Units, there: int, outside: int) -> None:
        """Say at the first update that there will never be anything to move."""
        if units.step == units.elapsed and there and outside:
            warnings.warn(
                f"{self.name}: drop_fraction={self.drop_fraction:g} of the {there} unit(s) that stay in "
                f"{', '.join(units.names)} is less than one: none of them will move",
                stacklevel=2,
            )
