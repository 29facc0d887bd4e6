"""The weighted group sparse envelope as a training method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from setpoint.budget import Target
from setpoint.functional import prox_group_envelope
from setpoint.geometry import FOLLOWED
from setpoint.methods.base import Method, Units
from setpoint.units import Layer

Level = Literal["ramp", "target"]


@dataclass(frozen=True)
class GroupSparseEnvelope(Method):
    """Draw the units towards the budget, between steps, by the proximal map of the group sparse envelope.

    The envelope is the convex penalty nearest to "at most so much cost is kept": its proximal map leaves the largest
    units nearly alone and soft-thresholds the others, at a threshold that follows from the budget (Y. Refael, I. Arbel,
    W. Huleihel, arXiv 2212.12921). De-biased, units within the budget are not shrunk at all, and the map goes over from
    the identity to the hard cut as its strength rises to 1.

    Attributes:
        debias: take the de-biased map, whose strength rises quadratically through the sparsify phase. Otherwise the
            convex envelope at a constant strength, in the optimizer's own geometry.
        time: regularisation time of the de-biased map: the sum of its strengths over the phase. Far below 2 nothing
            happens before the cut; far above 50 the method is gradual magnitude pruning that lets units grow back.
        strength: coefficient of the convex envelope in the loss, as of a weight decay; times the optimizer's step size
            (`lr / (1 - momentum)` for SGD; Adam's metric for Adam and AdamW).
        level: the budget of the envelope follows the schedule (`"ramp"`), or is the target's throughout (`"target"`).
    """

    debias: bool = True
    time: float = 30.0
    strength: float = 5e-4
    level: Level = "ramp"

    name: ClassVar[str] = "wgsef"

    def __post_init__(self) -> None:
        for field in ("time", "strength"):
            if not 0.0 < getattr(self, field) < float("inf"):
                raise ValueError(f"wgsef {field}={getattr(self, field)} must be a number above 0")
        if self.level not in get_args(Level):
            raise ValueError(f"wgsef level={self.level!r} is none of {', '.join(get_args(Level))}")

    def check(self, layers: Sequence[Layer], target: Target | None, optimizer: Optimizer) -> None:
        """Refuse, for the convex envelope, optimizers whose steps its proximal map cannot follow."""
        super().check(layers, target, optimizer)
        if self.debias:
            return  # what survives is not moved, so that the stationary points are the same in every metric
        if not isinstance(optimizer, FOLLOWED):
            names = ", ".join(kind.__name__ for kind in FOLLOWED)
            raise ValueError(
                f"wgsef with debias=False cannot follow the steps of {type(optimizer).__name__}; possible: {names}, "
                "or debias=True with any optimizer"
            )
        grouped = next((la.name for la in layers if bool((la.partition.sizes() > 1).any())), None)
        if isinstance(optimizer, Adam | AdamW) and grouped is not None:
            raise ValueError(
                f"wgsef with debias=False: {type(optimizer).__name__} scales each entry of a unit of {grouped!r} by "
                "itself, which a proximal map of whole units does not follow; possible: SGD, unit='weight', or "
                "debias=True"
            )

    def factors(self, units: Units) -> Sequence[Tensor | None]:
        """The proximal map, divided by the magnitudes."""
        room = units.room if self.level == "ramp" else units.budget.room(1.0)
        if self.debias:
            strength = min(1.0, self.time * units.share * 3.0 * units.progress**2)
            return prox_group_envelope(units.magnitudes, room, strength, units.costs, debias=True)
        steps, metrics = zip(*units.geometry())
        # One strength for the set: what differs between parameter groups goes into the metric.
        base = max(steps)
        metric = [torch.ones(()) if h is None else h for h in metrics]
        metric = [h * (base / step) for h, step in zip(metric, steps)]
        strength = self.strength * base * units.elapsed
        return prox_group_envelope(units.magnitudes, room, strength, units.costs, metric=metric)
