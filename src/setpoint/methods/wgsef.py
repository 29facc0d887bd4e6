"""The weighted group sparse envelope as a training method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from setpoint.budget import Target
from setpoint.functional.envelope_prox import prox_of_values
from setpoint.functional.values import Values
from setpoint.geometry import FOLLOWED, followed_kind, share_second_moment
from setpoint.methods.base import Method, Units, check_weights
from setpoint.optimizer_set import OptimizerSet
from setpoint.options import choice
from setpoint.units import Layer, Partition

Level = Literal["ramp", "target"]
Rise = Literal["quadratic", "linear", "constant"]

_POWERS: dict[str, int] = {"quadratic": 2, "linear": 1, "constant": 0}


@dataclass(frozen=True)
class GroupSparseEnvelope(Method):
    """Draw the units towards the budget, between steps, by the proximal map of the group sparse envelope.

    The envelope is the convex penalty nearest to "at most so much cost is kept": its proximal map leaves the largest
    units nearly alone and soft-thresholds the others, at a threshold that follows from the budget (Y. Refael, I. Arbel,
    W. Huleihel, arXiv 2212.12921). De-biased, units within the budget are not shrunk at all, and the map goes over from
    the identity to the hard cut as its strength rises to 1.

    Attributes:
        debias: take the de-biased map. Otherwise the convex envelope, in the optimizer's own geometry. For units of
            several weights Adam and AdamW are then given one second moment a unit throughout the sparsify phase
            (`setpoint.geometry.share_second_moment`), as the map is exact in no other.
        time: regularisation time of the de-biased map: the sum of its strengths over the phase. Far below 2 nothing
            happens before the cut; far above 100 the method is gradual magnitude pruning that lets units grow back.
        strength: coefficient of the convex envelope in the loss, as of a weight decay; times the optimizer's step size
            (`lr / (1 - momentum)` for SGD; Adam's metric for Adam and AdamW).
        rise: how the strength goes through the sparsify phase: as the square of its progress, in proportion to it, or
            not at all. De-biased it rises from 0 with the sum that `time` names, by default quadratically; of the
            convex envelope it rises from 0 to `strength`, by default it is constant.
        level: the budget of the envelope follows the schedule (`"ramp"`), or is the target's throughout (`"target"`).
        scale_invariant: compare units of different layers by their share in the norm of their layer, rather than by
            magnitude, so that no layer goes for being small. By default so for units of several weights. The convex
            envelope is one of the magnitudes themselves; there this decides on the final cut alone.
        weights: per parameter name, non-negative weights of its units in the envelope's quadratic (shaped as the
            parameter for single weights, otherwise broadcastable to the partition's counts): units of larger weight
            go first, in the map and in the cut, which ranks by magnitude / sqrt(weight). Those of weight 0 are never
            shrunk and the last to go. Others have weight 1. The de-biased strength is that of the largest weight under
            a budget, which a strength of 1 cuts hard; it is smaller for the others in proportion.
    """

    debias: bool = True
    time: float = 100.0
    strength: float = 5e-4
    rise: Rise | None = None
    level: Level = "ramp"
    scale_invariant: bool | None = None
    weights: Mapping[str, Tensor] | None = None

    name: ClassVar[str] = "wgsef"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("time", "strength"):
            if not 0.0 < getattr(self, field) < float("inf"):
                raise ValueError(f"wgsef {field}={getattr(self, field)} must be a number above 0")
        if self.rise is not None:
            choice("wgsef rise", self.rise, get_args(Rise))
        choice("wgsef level", self.level, get_args(Level))

    @property
    def steps(self) -> bool:
        """Only the convex envelope looks at every step: what survives the other is not moved, in whatever metric."""
        return not self.debias

    def check(self, layers: Sequence[Layer], target: Target | None, optimizers: OptimizerSet) -> None:
        """Refuse weights that do not fit and, for the convex envelope, steps that its proximal map cannot follow."""
        super().check(layers, target, optimizers)
        check_weights(self.weights, layers)
        partitions = {layer.name: layer.partition for layer in layers}
        for name, weights in (self.weights or {}).items():
            _check_shape(name, weights, partitions[name])
        if self.debias:
            return
        for layer in layers:
            for part in layer.parts:
                _check_followed(optimizers.of(part.parameter), layer)

    def scores(self, units: Units) -> Sequence[Tensor | Values]:
        """The order in which the map takes units away as its strength grows: by magnitude / sqrt(weight)."""
        weights, compared = self._weights(units), units.compared(self.scale_invariant)
        if weights is None:
            return compared
        # Not divided by zero: a unit of weight 0 is the last to go.
        return [m.tensor().double() / w.sqrt().clamp_min(1e-30) for m, w in zip(compared, weights)]

    def after_step(self, units: Units) -> None:
        """Give each unit one second moment under Adam and AdamW."""
        for part in (part for layer in units.layers for part in layer.leading):
            optimizer = units.optimizers.of(part.parameter)
            if isinstance(optimizer, Adam | AdamW):
                share_second_moment(optimizer, part.parameter, part.partition)

    def factors(self, units: Units) -> Sequence[Tensor | Values | None]:
        """The proximal map, divided by the magnitudes."""
        weights, units = self._weights(units), units if self.level == "ramp" else replace(units, ramp=1.0)
        room = units.room
        if weights is not None:
            # Units of weight 0 take no part in the envelope's budget, but in the cut's.
            free = sum(float((c * (w == 0)).expand_as(w).sum()) for c, w in zip(units.costs, weights))
            room = max(room - free, 0.0)
        if self.debias:
            heaviest = 1.0 if weights is None else max(float(w.max()) for w in weights) or 1.0
            strength = min(1.0, self.time * units.share * self._risen(units)) / heaviest
            return prox_of_values(
                units.compared(self.scale_invariant), room, strength, units.costs, weights, debias=True
            )
        steps, metrics = zip(*units.geometry())
        # One strength for the set: what differs between parameter groups goes into the metric.
        base = max(steps)
        if base == 0.0:
            return [None] * len(steps)
        metric = [torch.ones(()) if h is None else h for h in metrics]
        metric = [h * (base / max(step, 1e-30 * base)) for h, step in zip(metric, steps)]
        strength = self.strength * base * units.elapsed * self._risen(units)
        return prox_of_values(units.values, room, strength, units.costs, weights, metric)

    def _risen(self, units: Units) -> float:
        """The strength's course: of mean 1 over the phase de-biased, up to 1 otherwise."""
        power = _POWERS[self.rise or ("quadratic" if self.debias else "constant")]
        return float((power + 1 if self.debias else 1) * units.progress**power)

    def _weights(self, units: Units) -> list[Tensor] | None:
        """Of the units of each layer, shaped as their magnitudes; None where all are 1."""
        if not self.weights:
            return None
        given = [self.weights.get(name, torch.ones(())) for name in units.names]
        pairs = zip(given, units.layers)
        return [_spread(w, layer.partition).to(layer.device, torch.float64) for w, layer in pairs]


def _check_followed(optimizer: Optimizer, layer: Layer) -> None:
    if followed_kind(optimizer) is None:
        names = ", ".join(kind.__name__ for kind in FOLLOWED)
        raise ValueError(
            f"wgsef with debias=False cannot follow the steps of {type(optimizer).__name__}; possible: {names}, "
            "or debias=True with any optimizer"
        )
    if isinstance(optimizer, Adam | AdamW) and layer.rest:
        raise ValueError(
            f"wgsef with debias=False: {type(optimizer).__name__} scales each entry of {layer.name!r} by itself, and "
            "N:M units, which change with the weights, can share no scale; possible: SGD, another unit, or debias=True"
        )


def _check_shape(name: str, weights: Tensor, partition: Partition) -> None:
    try:
        _spread(weights, partition)
    except RuntimeError:
        raise ValueError(
            f"the weights of {name!r} have shape {tuple(weights.shape)}; possible: what broadcasts to its "
            f"units, {partition.counts}, and for single weights the parameter's shape"
        ) from None


def _spread(weights: Tensor, partition: Partition) -> Tensor:
    """One weight a unit."""
    shape = tuple(weights.shape)
    if weights.ndim and shape == partition.layout.shape and bool((partition.sizes() == 1).all()):
        return partition.magnitudes(weights)
    return weights.expand(partition.counts)
