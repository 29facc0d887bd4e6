"""What a method is: it sees the units of some layers and a budget, and answers with factors for the units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from setpoint.budget import Budget, Target
from setpoint.functional import project_budget
from setpoint.units import Layer, Partition


@dataclass(frozen=True)
class Units:
    """All units that share one budget, layer by layer.

    Attributes:
        names: of the parameters.
        partitions: how each parameter falls into units.
        magnitudes: of each parameter's units, shaped as the partition's counts.
        budget: which the units share.
        target: what the user asked for.
        ramp: how much of the way from everything to the target the budget has gone, in [0, 1].
        progress: how much of the sparsify phase has passed, in [0, 1].
        share: how much of the phase one update stands for.
        elapsed: optimizer steps between two updates.
        geometry: answers, layer by layer, the optimizer's step size and metric (`setpoint.geometry`).
    """

    names: tuple[str, ...]
    partitions: tuple[Partition, ...]
    magnitudes: tuple[Tensor, ...]
    budget: Budget
    target: Target | None
    ramp: float
    progress: float
    share: float
    elapsed: int
    geometry: Callable[[], list[tuple[float, Tensor | None]]]

    @property
    def room(self) -> float:
        """Cost that the units may have now."""
        return self.budget.room(self.ramp)

    def cut(self, scores: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Which units stay under the present budget, by magnitude or by the scores given: boolean tensors."""
        return project_budget(
            self.magnitudes if scores is None else scores, self.room, self.budget.costs, floors=self.budget.floors
        )


@dataclass(frozen=True)
class Method(ABC):
    """A way to make the final cut harmless. The cut itself, and so the target, is kept by the sparsifier.

    A method is a frozen dataclass: its fields are its options, and it holds no state of the run.
    """

    name: ClassVar[str]
    # Whether units that were removed stay at zero until the next update, rather than being free to grow back.
    holds: ClassVar[bool] = False

    def check(self, layers: Sequence[Layer], target: Target | None, optimizer: Optimizer) -> None:
        """Refuse what the method cannot do, before the run.

        Raises:
            ValueError: naming the layer, what was asked and what is possible.
        """
        if target is not None and target.hoyer is not None:
            raise ValueError(
                f"method {self.name!r} cannot meet a target hoyer={target.hoyer}: that takes method 'gsp', "
                "or ask for a sparsity"
            )

    def scores(self, units: Units) -> Sequence[Tensor]:
        """By what the units are ranked in the cut: non-negative, magnitudes unless a method knows better."""
        return units.magnitudes

    @abstractmethod
    def factors(self, units: Units) -> Sequence[Tensor | None]:
        """What to multiply each unit's entries by, at an update of the sparsify phase; None leaves a layer as it is."""

    def keep(self, units: Units) -> Sequence[Tensor]:
        """The support at the freeze: which units stay for the rest of the run."""
        return units.cut(self.scores(units))

    def settles(self, target: Target | None) -> bool:
        """Whether `settle` has anything to do after the steps of the frozen phase."""
        return False

    def settle(self, units: Units) -> Sequence[Tensor | None]:
        """What to multiply the units by after each step of the frozen phase, beyond holding the support."""
        return [None] * len(units.magnitudes)

    def measured(self, units: Units) -> float | None:
        """The value of a measure that the target names beside the budget, as the method understands it."""
        return None


def as_factors(kept: Sequence[Tensor]) -> list[Tensor]:
    """Masks as factors of zero and one."""
    return [k.to(torch.float32) for k in kept]
