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
from setpoint.functional.bits import Mask, Masks
from setpoint.functional.budget import project_values
from setpoint.functional.entries import count_nonzero
from setpoint.functional.values import Among, Entries, Values
from setpoint.methods.base import Units
from setpoint.methods.draws import seeded
from setpoint.methods.growth import plant
from setpoint.methods.support import DrawnSupport, by_price, one_price, roots
from setpoint.options import choice
from setpoint.reading import beside, read

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
        seen = [mask.count() for mask in self._seen(units)]
        return {
            "moved": units.memory["moved"],
            "covered": sum(read(seen)) / sum(math.prod(layer.counts) for layer in units.layers),
        }

    @abstractmethod
    def _wanted(self, units: Units, prices: Sequence[Tensor]) -> Sequence[Values]:
        """How much each unit is wanted for its price, of those that may grow."""

    def _draw(self, units: Units) -> Sequence[Mask]:
        kept = super()._draw(units)
        units.memory.update(seen=[k.stored for k in kept], moved=0.0)
        return kept

    def _seen(self, units: Units) -> list[Mask]:
        """Which units were ever there."""
        pairs = zip(units.memory["seen"], units.layers)
        return [Mask.restored(stored, layer.counts, layer.device) for stored, layer in pairs]

    def _move(self, units: Units, kept: Masks) -> Sequence[Mask]:
        prices = units.budget.prices(kept)
        before = after = kept.masks
        survivors = self._survivors(units, before, prices)
        units.memory["moved"] = 0.0
        if survivors is not None:
            after = self._grown(units, before, survivors, prices)
            random, warm = self.begin == "random", self.second_moment == "mean"
            for layer, now, old in zip(units.layers, after, survivors):
                generator = seeded(layer.device, self.seed, units.step, f"{layer.name} values")
                plant(layer, now.without(old), old, units.optimizers, generator, random=random, warm=warm)
            new = [now.without(old).count() for now, old in zip(after, before)]
            units.memory["moved"] = sum(read(new)) / sum(read([now.count() for now in after]))
            units.memory["seen"] = [(seen | now).stored for seen, now in zip(self._seen(units), after)]
        if self.replace_step:
            for part in (part for layer in units.layers for part in layer.parts):
                part.parameter.grad = None
        return after

    def _survivors(self, units: Units, kept: Sequence[Mask], prices: Sequence[Tensor]) -> list[Mask] | None:
        """What is not dropped: all but the smallest units, by magnitude for their price. None if all survive."""
        there = sum(int(n) for n in read([k.count() for k in kept]))
        outside = sum(k.numel() for k in kept) - there
        free = [None if one_price(prices) else _free(price, k) for price, k in zip(prices, kept)]
        there -= sum(int(n) for n in read([f.count() for f in free if f is not None]))
        # A hair more: 0.29 * 100 is below 29 in floating point.
        drop = min(int(self.fraction(units.progress) * there + 1e-9), outside)
        if drop == 0:
            self._warn(units, there, outside)
            return None
        # What stays comes before all that does not, though it may be zero itself.
        ranks = [
            Among(rank, k if f is None else k.without(f))
            for rank, k, f in zip(by_price(units.compared(None), units, prices), kept, free)
        ]
        survivors = project_values(ranks, there - drop, [1.0] * len(ranks), floors=[0] * len(ranks))
        return [Mask.of(s) if f is None else Mask.of(s) | f for s, f in zip(survivors, free)]

    def _grown(
        self, units: Units, kept: Sequence[Mask], survivors: Sequence[Mask], prices: Sequence[Tensor]
    ) -> tuple[Mask, ...]:
        """The survivors, and of the other units the most wanted that the budget has room for."""
        pull = self._wanted(units, prices)
        alike = self.regrow and units.budget.whole is None and one_price(prices)
        if alike and (grown := self._most_wanted(units, pull, survivors)) is not None:
            return tuple(s | Mask.of(new) for s, new in zip(survivors, grown))
        scores = []
        top = max(read([wanted.peak for wanted in pull])) or 1.0
        for layer, wanted, k, s, root in zip(units.layers, pull, kept, survivors, roots(units, prices)):
            score = wanted.tensor().double() / top
            score = torch.where(score > 0, score, _UNWANTED * self._random(units, layer).tensor().double())
            if not self.regrow:
                score = torch.where(k.tensor(), _DROPPED * score, score)
            scores.append(torch.where(s.tensor(), _SURVIVES, score) * root)
        return tuple(Mask.of(k) for k in units.cut(scores))

    def _most_wanted(self, units: Units, pull: Sequence[Values], survivors: Sequence[Mask]) -> Sequence[Tensor] | None:
        """What grows beside the survivors, where all units cost the same; None if there are not as many wanted ones."""
        counts = [s.count() for s in survivors]
        wanted = [count_nonzero(w.entries) for w in pull if isinstance(w, Entries)]
        numbers = [int(n) for n in read([*counts, *wanted])]
        stay = numbers[: len(counts)]
        room = units.budget.places(units.ramp)
        if wanted and sum(numbers[len(counts) :]) < room:
            return None
        floors = [max(0, floor - n) for floor, n in zip(units.budget.floors, stay)]
        among = [Among(w, s, wanted=False) for w, s in zip(pull, survivors)]
        return project_values(among, room - sum(stay), [1.0] * len(among), floors=floors)

    def _warn(self, units: Units, there: int, outside: int) -> None:
        """Say at the first update that there will never be anything to move."""
        if units.step == units.elapsed and there and outside:
            warnings.warn(
                f"{self.name}: drop_fraction={self.drop_fraction:g} of the {there} unit(s) that stay in "
                f"{', '.join(units.names)} is less than one: none of them will move",
                stacklevel=2,
            )


def _free(price: Tensor, kept: Mask) -> Mask:
    """Which of the kept units cost nothing."""
    return Mask.of((beside(price, kept.device) <= 0) & kept.tensor())
