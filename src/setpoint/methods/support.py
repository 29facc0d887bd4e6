"""A support that is drawn before the first step: what all methods that are sparse throughout have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from setpoint.budget import Schedule, Target, Timeline
from setpoint.functional.bits import Mask, Masks
from setpoint.functional.compiled.threads import Array
from setpoint.functional.counter import key_of, uniform, uniform_array
from setpoint.functional.values import Entries, Values
from setpoint.methods.base import Method, Units
from setpoint.optimizer_set import OptimizerSet
from setpoint.options import choice
from setpoint.reading import beside
from setpoint.units import Layer

Initial = Literal["random", "magnitude"]


@dataclass(frozen=True)
class DrawnSupport(Method):
    """Sparse from the first step to the last: the whole budget holds before the first step, and after every other.

    Attributes:
        initial: how the support is drawn at the start: at random, every unit of the layers that share a budget being as
            likely as any other, or the units of the largest magnitudes.
        seed: of the random numbers. They depend on the seed, the layer and the step alone, so that they are the same
            on all ranks and in a resumed run.
    """

    initial: Initial = "random"
    seed: int = 0

    holds: ClassVar[bool] = True
    always_sparse: ClassVar[bool] = True
    schedule: ClassVar[Schedule] = Schedule("constant", begin=0, end=0.75)

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(f"{self.name} initial", self.initial, get_args(Initial))

    def timeline(self, schedule: Schedule | None, steps: int) -> Timeline:
        """Refuse phases in which the model would be dense."""
        line = super().timeline(schedule, steps)
        if line.schedule.shape != "constant" or line.begin != 0:
            raise ValueError(
                f"method {self.name!r} is sparse from the first step on, and the schedule's shape is "
                f"{line.schedule.shape!r} from step {line.begin}; possible: shape 'constant' with begin=0, such as "
                f"{self.schedule}"
            )
        return line

    def check(self, layers: Sequence[Layer], target: Target | None, optimizers: OptimizerSet) -> None:
        """Refuse weights that cannot be ranked, as the support is drawn at once."""
        super().check(layers, target, optimizers)
        for layer in layers:
            if not bool(torch.isfinite(layer.values().peak)):
                raise ValueError(f"{layer.name!r} holds NaN or infinite values: it can be given no support")

    def factors(self, units: Units) -> Sequence[Mask]:
        """The support: what is not in it is zero."""
        return self._draw(units) if units.kept is None else self._move(units, units.kept)

    def keep(self, units: Units) -> Sequence[Tensor]:
        """The support as it is."""
        assert units.kept is not None
        return units.kept

    def _draw(self, units: Units) -> Sequence[Mask]:
        """The first support."""
        return [Mask.of(kept) for kept in self._drawn(units)]

    def _drawn(self, units: Units) -> Sequence[Tensor]:
        if self.initial == "magnitude":
            return units.cut(units.compared(None))
        prices = units.budget.costs
        drawn = [self._random(units, layer) for layer in units.layers]
        if one_price(prices):
            return units.cut(drawn)
        return units.cut([numbers.tensor().double() * root for numbers, root in zip(drawn, roots(units, prices))])

    def _move(self, units: Units, kept: Masks) -> Sequence[Mask]:
        """The support after an update."""
        return kept.masks

    def _random(self, units: Units, layer: Layer) -> Values:
        """A number in (0, 1] for each unit."""
        return Drawn(layer.counts, layer.device, key_of(self.seed, units.step, layer.name))


class Drawn(Values):
    """Random numbers in (0, 1], by a counter.

    Args:
        shape: of the numbers.
        device: where they are; they are the same on all.
        key: that they are a function of.
    """

    def __init__(self, shape: Sequence[int], device: torch.device, key: int) -> None:
        super().__init__(shape, device, torch.float32)
        self._key = key

    def block(self, begin: int, end: int) -> Tensor:
        """Some of them."""
        return uniform(self._key, begin, end, self.device)

    def piece(self, begin: int, end: int) -> Array:
        """The same as an array."""
        return uniform_array(self._key, begin, end)


def one_price(prices: Sequence[Tensor]) -> bool:
    """Whether all units cost the same, and something."""
    numbers = {float(price) if price.numel() == 1 and price.device.type == "cpu" else None for price in prices}
    number = numbers.pop()
    return not numbers and number is not None and number > 0.0


def by_price(values: Sequence[Entries], units: Units, prices: Sequence[Tensor]) -> Sequence[Entries]:
    """The same where all units cost the same, and otherwise for their price."""
    if one_price(prices):
        return values
    return [Entries(v.tensor().double() / root, signed=False) for v, root in zip(values, roots(units, prices))]


def roots(units: Units, prices: Sequence[Tensor]) -> list[Tensor]:
    """Square roots of prices, by which a cut divides scores; 1 for what costs nothing and stays in any case."""
    there = [beside(price, layer.device) for price, layer in zip(prices, units.layers)]
    return [price.masked_fill(price <= 0, 1.0).sqrt() for price in there]
