"""DeepHoyer as a training method, its strength driven by what the cut would cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from setpoint.methods.base import Method, Units
from setpoint.reading import read
from setpoint.units import Layer, Part, partition

# The strength moves by at most this factor (a logarithm) between two updates, and stays within these bounds.
_STRIDE = 0.5
_BOUNDS = (1e-4, 10.0)
# Units outside the budget that weigh nothing at all still give an error of finite size.
_LEAST = 2.0


@dataclass(frozen=True)
class DeepHoyer(Method):
    """Press on the units outside the budget, by the shrinking half of Hoyer-Square, as hard as makes the cut harmless.

    Hoyer-Square of a layer's magnitudes, `(sum m)^2 / sum m^2`, has the gradient `2 (t - m) / t^2`, with the trimming
    point `t = sum m^2 / sum m`: it shrinks what lies below t and inflates what lies above (H. Yang, W. Wen, H. Li,
    "DeepHoyer", ICLR 2020, equations 3 and 6). For units larger than a weight the magnitudes are the groups' norms and
    this is Group-HS. Taken here are the shrinking half alone, so that no weight is blown up; outside of the optimizer's
    moments, as a proximal step at every update; and at the units that the present budget has no room for, so that what
    stays is not eroded. A unit loses `strength (t - m)`.

    The strength is driven: harm is the share of the layers' energy (their squared weights) that lies outside the
    budget, measured before each update, and the strength rises while the harm is above the tolerance.

    Attributes:
        tolerance: the harm to be reached, in (0, 1).
        start: the strength at the first update.
        proportional: gain on changes of the error, which is the logarithm of harm by tolerance, at most 2 in size; the
            control is of the logarithm of the strength.
        integral: gain on the error itself.
        scale_invariant: compare units of different layers by their share in the norm of their layer, rather than by
            magnitude, so that no layer goes for being small. By default so for units of several weights. Hoyer-Square
            itself is invariant to the scale of a layer.
        across: for rows and filters, press on the input channels as well (and for columns on the rows), as the paper
            does, though only units are counted: those outside the same share of them.
    """

    tolerance: float = 0.01
    start: float = 0.01
    proportional: float = 1.0
    integral: float = 0.3
    scale_invariant: bool | None = None
    across: bool = False

    name: ClassVar[str] = "hoyer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.tolerance < 1.0:
            raise ValueError(f"hoyer tolerance={self.tolerance} must lie between 0 and 1")
        if not _BOUNDS[0] <= self.start <= _BOUNDS[1]:
            raise ValueError(f"hoyer start={self.start} must lie in [{_BOUNDS[0]}, {_BOUNDS[1]}]")
        for field in ("proportional", "integral"):
            if not 0.0 <= getattr(self, field) < math.inf:
                raise ValueError(f"hoyer {field}={getattr(self, field)} must be a number of at least 0")

    def scores(self, units: Units) -> Sequence[Tensor]:
        """Magnitudes, or shares of the layers' norms."""
        return units.compared(self.scale_invariant)

    def factors(self, units: Units) -> Sequence[Tensor | None]:
        """What the pressure leaves of each unit, divided by its magnitude."""
        kept = units.cut(self.scores(units))
        strength = self._control(units, kept)
        if self.across:
            for layer in units.layers:
                _press_across(
                    layer, strength, units.budget.room(units.ramp) / (units.budget.total - units.budget.fixed)
                )
        return [_pressed(m, k, strength) for m, k in zip(units.magnitudes, kept)]

    def gauges(self, units: Units) -> dict[str, float]:
        """The strength, and the harm that the cut would have done before the update."""
        return {"strength": units.memory["strength"], "harm": units.memory["harm"]}

    def _control(self, units: Units, kept: Sequence[Tensor]) -> float:
        """One step of a controller, proportional and integral in the logarithm of the strength, and bounded."""
        memory = units.memory
        memory["harm"] = _energy_outside(units, kept)
        error = math.log(max(memory["harm"] / self.tolerance, math.exp(-_LEAST)))
        error = min(error, _LEAST)
        if "strength" in memory:
            stride = self.integral * error + self.proportional * (error - memory["error"])
            moved = memory["strength"] * math.exp(min(max(stride, -_STRIDE), _STRIDE))
            memory["strength"] = min(max(moved, _BOUNDS[0]), _BOUNDS[1])
        else:
            memory["strength"] = self.start
        memory["error"] = error
        return float(memory["strength"])


def _energy_outside(units: Units, kept: Sequence[Tensor]) -> float:
    """Share of the layers' energy that the cut would take; what belongs to no unit, as the N of N:M, is inside."""
    parameters = {part.parameter for layer in units.layers for part in layer.acted_on}
    norms = [torch.linalg.vector_norm(p.detach(), dtype=torch.float64) for p in parameters]
    scales = [1.0 if layer.scale is None else layer.scale.to(layer.device) for layer in units.layers]
    lost = [(m.masked_fill(k, 0.0).double() * s).square().sum() for m, k, s in zip(units.magnitudes, kept, scales)]
    figures = read([*(n.square() for n in norms), *lost])
    whole = sum(figures[: len(norms)])
    return sum(figures[len(norms) :]) / whole if whole > 0 else 0.0


def _pressed(magnitudes: Tensor, kept: Tensor, strength: float) -> Tensor:
    """Factors: 1 for what is kept, otherwise what is left of `m - strength (t - m)`."""
    m = magnitudes
    point = m.square().sum() / m.sum().clamp_min(torch.finfo(m.dtype).tiny)
    # Nothing outside the budget is left in peace, however large the layer's units are beside those of others: at the
    # greatest strength all of it goes.
    point = torch.maximum(point, m.masked_fill(kept, 0.0).max() * (1.0 + 1.0 / _BOUNDS[1]))
    left = (m - strength * (point - m)).clamp_min(0.0) / m.masked_fill(m == 0, 1.0)
    return torch.where(kept, 1.0, left)


def _press_across(layer: Layer, strength: float, share: float) -> None:
    """Press on the rows of columns and the columns of rows, outside the share of them that the budget leaves."""
    axes = {"row": "column", "column": "row"}
    units = layer.partition
    kind = next((k for k in axes if partition(k, units.layout) == units), None)
    if kind is None:
        return
    other = partition(axes[kind], units.layout)
    assert other is not None
    across = Layer(layer.name, (Part(layer.name, layer.parts[0].parameter, other),))
    m = across.magnitudes()
    order = m.flatten().argsort(descending=True, stable=True)
    kept = torch.zeros_like(order, dtype=torch.bool)
    kept[order[: max(1, round(share * m.numel()))]] = True
    factors = _pressed(m, kept.reshape(m.shape), strength)
    across.multiply(factors)
