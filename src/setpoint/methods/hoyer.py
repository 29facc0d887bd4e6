"""DeepHoyer as a training method, its strength driven by what the cut would cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from setpoint.functional.compiled.threads import Array
from setpoint.functional.values import Values, each_piece
from setpoint.methods.base import Method, Units
from setpoint.reading import read
from setpoint.units import Layer, Part, partition

# The strength moves by at most this factor (a logarithm) between two updates, and stays within these bounds.
_STRIDE = 0.5
_BOUNDS = (1e-4, 10.0)
# Squares that are summed in single precision before their sums are added in double.
_PART = 4096
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

    def scores(self, units: Units) -> Sequence[Tensor | Values]:
        """Magnitudes, or shares of the layers' norms."""
        return units.compared(self.scale_invariant)

    def factors(self, units: Units) -> Sequence[Tensor | Values | None]:
        """What the pressure leaves of each unit, divided by its magnitude."""
        kept = units.cut(self.scores(units))
        scales = [None if layer.scale is None else layer.scale.to(layer.device) for layer in units.layers]
        sums = [_Sums.of(values, mask, scale) for values, mask, scale in zip(units.values, kept, scales)]
        strength = self._control(units, sums)
        if self.across:
            for layer in units.layers:
                _press_across(
                    layer, strength, units.budget.room(units.ramp) / (units.budget.total - units.budget.fixed)
                )
        return [_Pressed(m, k, s, strength) for m, k, s in zip(units.values, kept, sums)]

    def gauges(self, units: Units) -> dict[str, float]:
        """The strength, and the harm that the cut would have done before the update."""
        return {"strength": units.memory["strength"], "harm": units.memory["harm"]}

    def _control(self, units: Units, sums: Sequence[_Sums]) -> float:
        """One step of a controller, proportional and integral in the logarithm of the strength, and bounded."""
        memory = units.memory
        memory["harm"] = _energy_outside(units, sums)
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


@dataclass(frozen=True)
class _Sums:
    """Sums over one layer's magnitudes: 0-dimensional, on its device.

    Attributes:
        total, square: of the magnitudes and their squares.
        lost: of the squares of those outside the budget, in float64.
        peak: the largest outside the budget.
    """

    total: Tensor
    square: Tensor
    lost: Tensor
    peak: Tensor

    @classmethod
    def of(cls, values: Values, kept: Tensor, scale: Tensor | None = None) -> _Sums:
        """Sums over all magnitudes, given which of them are within the budget.

        Args:
            values: the magnitudes.
            kept: in their shape.
            scale: what each of the squares lost is of, as a factor of the magnitude.
        """
        if values.device.type != "cpu" or scale is not None:
            m = values.tensor()
            outside = m.masked_fill(kept, 0.0)
            lost = (outside.double() if scale is None else outside.double() * scale).square().sum()
            return cls(m.sum(), m.square().sum(), lost, outside.amax() if m.numel() else m.new_zeros(()))
        within = kept.reshape(-1).numpy()

        def look(_: int, a: int, b: int) -> tuple[float, float, float, float]:
            m = values.piece(a, b)
            outside = m * ~within[a:b]
            return float(m.sum(dtype=np.float64)), _square(m), _square(outside), float(outside.max())

        (found,) = each_piece([values], look)
        columns = [np.array(column) for column in zip(*found)] if found else [np.zeros(1)] * 4
        numbers = [*(column.sum() for column in columns[:3]), columns[3].max()]
        return cls(*(torch.tensor(n, dtype=torch.float64) for n in numbers))


def _square(m: Array) -> float:
    """Sum of squares: parts of it in the magnitudes' own precision, by the fastest routine that there is."""
    whole = len(m) // _PART * _PART
    rows = m[:whole].reshape(-1, _PART)
    parts = np.einsum("ij,ij->i", rows, rows)
    return float(parts.sum(dtype=np.float64)) + float(np.dot(m[whole:], m[whole:]))


def _energy_outside(units: Units, sums: Sequence[_Sums]) -> float:
    """Share of the layers' energy that the cut would take; what belongs to no unit, as the N of N:M, is inside."""
    parameters = {part.parameter for layer in units.layers for part in layer.acted_on}
    single = {layer.parts[0].parameter: s.square for layer, s in zip(units.layers, sums) if layer.entries() is not None}
    squares = [single[p] if p in single else _norm(p).square() for p in parameters]
    figures = read([*squares, *(s.lost for s in sums)])
    whole = sum(figures[: len(squares)])
    return sum(figures[len(squares) :]) / whole if whole > 0 else 0.0


def _norm(parameter: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(parameter.detach(), dtype=torch.float64)
    return norm


class _Pressed(Values):
    """Factors of one layer: 1 for what is kept, otherwise what is left of `m - strength (t - m)`."""

    def __init__(self, values: Values, kept: Tensor, sums: _Sums, strength: float) -> None:
        super().__init__(values.shape, values.device, values.dtype)
        self._values, self._kept, self._strength = values, kept.reshape(-1), strength
        point = sums.square / sums.total.clamp_min(torch.finfo(values.dtype).tiny)
        # Nothing outside the budget is left in peace, however large the layer's units are beside those of others: at
        # the greatest strength all of it goes.
        self._point = torch.maximum(point, sums.peak * (1.0 + 1.0 / _BOUNDS[1])).to(values.dtype)

    def block(self, begin: int, end: int) -> Tensor:
        m, kept = self._values.block(begin, end), self._kept[begin:end]
        left = (m - self._strength * (self._point - m)).clamp_min(0.0) / m.masked_fill(m == 0, 1.0)
        return torch.where(kept, 1.0, left)

    def piece(self, begin: int, end: int) -> Array:
        m = self._values.piece(begin, end)
        kind = m.dtype.type
        lost: Any = kind(self._strength * float(self._point))
        if lost == 0:
            return np.ones_like(m)
        # (m - s (t - m)) / m; what is zero already may have any factor.
        with np.errstate(divide="ignore", over="ignore"):
            left: Array = np.divide(-lost, m)
        left += kind(1.0 + self._strength)
        # Within the budget 1, and outside less than that.
        np.maximum(np.clip(left, kind(0), kind(1), out=left), self._kept[begin:end].numpy(), out=left)
        return left


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
    mask, values = kept.reshape(m.shape), across.values()
    across.multiply(_Pressed(values, mask, _Sums.of(values, mask), strength))
