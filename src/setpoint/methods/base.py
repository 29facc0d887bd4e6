"""What a method is: it sees the units of some layers and a budget, and answers with factors for the units."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from setpoint.budget import Budget, Schedule, Target, Timeline
from setpoint.functional.bits import Mask, Masks
from setpoint.functional.values import Entries, Values
from setpoint.geometry import layer_geometry
from setpoint.optimizer_set import OptimizerSet
from setpoint.options import read_fields
from setpoint.reading import beside, read
from setpoint.suggestions import did_you_mean
from setpoint.units import Layer, Partition


@dataclass(frozen=True)
class Units:
    """All units that share one budget, layer by layer.

    Attributes:
        layers: the parameters and how each falls into units.
        budget: which the units share.
        target: what the user asked for.
        optimizers: which train the parameters.
        memory: what the method keeps of the run for this budget, empty at first: numbers, tensors, and lists and
            dicts of them, which are saved with the run.
        step: optimizer steps taken.
        ramp: how much of the way from everything to the target the budget has gone, in [0, 1].
        progress: how much of the sparsify phase has passed, in [0, 1].
        share: how much of the phase one update stands for.
        elapsed: optimizer steps between two updates.
        kept: which units there are, of a method that is `always_sparse`; None before it has drawn them.
        felt: l2 norms of the units' gradients, at an update of a method that `sees_gradients`.
    """

    layers: tuple[Layer, ...]
    budget: Budget
    target: Target | None
    optimizers: OptimizerSet
    memory: dict[str, Any]
    step: int
    ramp: float
    progress: float
    share: float
    elapsed: int
    kept: Masks | None = None
    felt: tuple[Entries, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters."""
        return tuple(layer.name for layer in self.layers)

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """How each parameter falls into units."""
        return tuple(layer.partition for layer in self.layers)

    @cached_property
    def values(self) -> tuple[Entries, ...]:
        """The magnitudes of each layer's units, computed where they are looked at if units are single weights.

        Raises:
            FloatingPointError: if a weight is NaN or infinite.
        """
        values = tuple(layer.values() for layer in self.layers)
        for layer, peak in zip(self.layers, read([value.peak for value in values])):
            if not math.isfinite(peak):
                raise FloatingPointError(
                    f"{layer.name!r} holds NaN or infinite values at step {self.step}: training has "
                    "diverged, the masks are as before"
                )
        return values

    @cached_property
    def magnitudes(self) -> tuple[Tensor, ...]:
        """The same as tensors, shaped as the partition's counts: as large as the weights, where these are the units.

        Raises:
            FloatingPointError: if a weight is NaN or infinite.
        """
        return tuple(value.tensor() for value in self.values)

    @cached_property
    def gradients(self) -> tuple[Entries, ...]:
        """The l2 norm of each unit's gradient, of those that are gone as well, compared as `compared(None)` does."""
        assert self.felt is not None
        for layer, peak in zip(self.layers, read([value.peak for value in self.felt])):
            if not math.isfinite(peak):
                raise FloatingPointError(
                    f"the gradient of {layer.name!r} holds NaN or infinite values: nothing can grow"
                )
        return _shares(self.felt) if self.whole else self.felt

    @cached_property
    def shares(self) -> tuple[Entries, ...]:
        """The magnitudes divided by the norm of their layer: what part of its layer a unit is, whatever its scale."""
        return _shares(self.values)

    def compared(self, scale_invariant: bool | None) -> tuple[Entries, ...]:
        """What units of different layers are compared by: shares or magnitudes; for None as is best for their kind.

        A weight is a weight in every layer, but the norms of whole units tell more of the width and the scale of their
        layer than of their worth: by magnitude, narrow layers are emptied (measured: benchmarks/results).
        """
        if scale_invariant is None:
            scale_invariant = self.whole
        return self.shares if scale_invariant else self.values

    @cached_property
    def whole(self) -> bool:
        """Whether there are units of several weights."""
        return any(bool((layer.sizes() > 1).any()) for layer in self.layers)

    @cached_property
    def costs(self) -> list[Tensor]:
        """What each unit costs, broadcastable to the magnitudes and on their devices.

        Where that depends on what else stays: at the widths that the present budget leaves.
        """
        prices = self.budget.prices(self._present) if self.budget.whole is not None else self.budget.costs
        return [beside(c, layer.device) for c, layer in zip(prices, self.layers)]

    @property
    def room(self) -> float:
        """Cost that the units may have now, as `costs` counts it."""
        if self.budget.whole is None:
            return self.budget.room(self.ramp)
        return sum(read([c * k.sum() for c, k in zip(self.costs, self._present)]))

    @cached_property
    def _present(self) -> list[Tensor]:
        """What the present budget leaves, by magnitude."""
        return self.budget.cut(self.compared(None), self.ramp)

    def geometry(self) -> list[tuple[float, Tensor | None]]:
        """The optimizer's step size and metric, layer by layer (`setpoint.geometry`)."""
        return [layer_geometry(self.optimizers, layer) for layer in self.layers]

    def cut(self, scores: Sequence[Tensor | Values] | None = None) -> list[Tensor]:
        """Which units stay under the present budget, by magnitude or by the scores given: boolean tensors."""
        return self.budget.cut(self.values if scores is None else scores, self.ramp)


@dataclass(frozen=True)
class Method(ABC):
    """A way to make the final cut harmless. The cut itself, and so the target, is kept by the sparsifier.

    A method is a frozen dataclass: its fields are its options, and it holds no state of the run. What it has to
    remember of a run is in `Units.memory`.
    """

    name: ClassVar[str]
    # Whether units that were removed stay at zero until the next update, rather than being free to grow back.
    holds: ClassVar[bool] = False
    # Whether units are multiplied by gates in the forward pass, which `gates` opens and shuts at every step.
    gated: ClassVar[bool] = False
    # Whether the model is sparse from the first step to the last. `factors` are then asked for when the run is set up,
    # and at updates before the optimizer's step, when the gradients are there, rather than after it. What is gone has
    # neither gradient nor optimizer state.
    always_sparse: ClassVar[bool] = False
    # Whether such a method asks at updates for the gradients of what is gone as well: `Units.gradients`.
    sees_gradients: ClassVar[bool] = False
    # The phases, where the user names none.
    schedule: ClassVar[Schedule] = Schedule()

    def __post_init__(self) -> None:
        """Read the options that are numbers and switches; a method checks their ranges after this.

        Raises:
            ValueError: for an option that is none, by its annotation.
        """
        read_fields(self, self.name)

    def timeline(self, schedule: Schedule | None, steps: int) -> Timeline:
        """The phases of a run of so many optimizer steps.

        Raises:
            ValueError: for a schedule that the method cannot follow, or too few steps for it.
        """
        return (schedule or self.schedule).timeline(steps)

    @property
    def steps(self) -> bool:
        """Whether `after_step` has work at every step of the sparsify phase, beside the updates."""
        return False

    def check(self, layers: Sequence[Layer], target: Target | None, optimizers: OptimizerSet) -> None:
        """Refuse what the method cannot do, before the run.

        Raises:
            ValueError: naming the layer, what was asked and what is possible.
        """
        if target is not None and target.hoyer is not None:
            raise ValueError(
                f"method {self.name!r} cannot meet a target hoyer={target.hoyer}: that takes method 'gsp', "
                "or ask for a sparsity"
            )

    def scores(self, units: Units) -> Sequence[Tensor | Values]:
        """By what the units are ranked in the cut: non-negative, magnitudes unless a method knows better."""
        return units.values

    @abstractmethod
    def factors(self, units: Units) -> Sequence[Tensor | Values | Mask | None]:
        """What to multiply each unit's entries by, at an update of the sparsify phase; None leaves a layer as it is.

        A mask stands for ones and zeros. `Values` are computed when they are applied.
        """

    def after_step(self, units: Units) -> None:  # noqa: B027 - most methods have nothing to do
        """Called after each step of the sparsify phase if the method `steps`, before the update where there is one."""

    def gates(self, units: Units, felt: Sequence[tuple[Tensor, Tensor]] | None) -> Sequence[tuple[Tensor, Tensor]]:
        """Of a gated method: each layer's gates for the next training step, and those to evaluate with.

        Args:
            units: before the optimizer's step.
            felt: for each layer its gates of this step, and the derivative of the loss by them, shaped as the
                partition's counts. None where there is nothing to learn from: at the start of the sparsify phase, and
                when a run is resumed, where the same gates as before must be given again.
        """
        raise NotImplementedError

    def fold(self, units: Units, kept: Sequence[Tensor]) -> Sequence[Tensor]:
        """What the kept units are multiplied by at the freeze, or the mask itself; not 0 where a unit stays."""
        return kept

    def gauges(self, units: Units) -> dict[str, float]:
        """Figures that tell how the method is doing, to be plotted over the run."""
        return {}

    def keep(self, units: Units) -> Sequence[Tensor]:
        """The support at the freeze: which units stay for the rest of the run."""
        return units.cut(self.scores(units))

    def settles(self, target: Target | None) -> bool:
        """Whether `settle` has anything to do after the steps of the frozen phase."""
        return False

    def settle(self, units: Units) -> Sequence[Tensor | None]:
        """What to multiply the units by after each step of the frozen phase, beyond holding the support."""
        return [None] * len(units.layers)

    def measured(self, units: Units) -> float | None:
        """The value of a measure that the target names beside the budget, as the method understands it."""
        return None


def _shares(values: Sequence[Entries]) -> tuple[Entries, ...]:
    wholes = [value.norm() for value in values]
    return tuple(value.over(whole.masked_fill(whole == 0, 1.0)) for value, whole in zip(values, wholes))


def check_weights(weights: Mapping[str, Tensor] | None, layers: Sequence[Layer]) -> None:
    """Refuse a user's weights of units, given by parameter name, that no layer has or that no weight can be.

    Raises:
        ValueError: naming the parameter.
    """
    if weights is not None and not isinstance(weights, Mapping):
        raise ValueError(f"weights={weights!r} must be a mapping from parameter names to tensors")
    names = [layer.name for layer in layers]
    for name, given in (weights or {}).items():
        if name not in names:
            nearest = did_you_mean(name, names)
            raise ValueError(
                f"weights are given for {name!r}, which is none of the layers: {', '.join(names)}{nearest}"
            )
        if not isinstance(given, Tensor) or given.is_complex():
            raise ValueError(f"the weights of {name!r} must be a tensor of real numbers, not {given!r}")
        if not bool((torch.isfinite(given) & (given >= 0)).all()):
            raise ValueError(f"the weights of {name!r} must be finite and not negative")
