"""Sparse evolutionary training: what is dropped grows again anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from setpoint.functional.values import Values
from setpoint.methods.base import Units
from setpoint.methods.moving import MovingSupport


@dataclass(frozen=True)
class SparseEvolutionaryTraining(MovingSupport):
    """Drop the smallest units and grow others at random.

    Source: D. C. Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity
    inspired by network science", Nature Communications 2018. There the fraction that is dropped stays the same
    (`decay="constant"`); that it falls is from RigL's comparison with it.
    """

    name: ClassVar[str] = "set"

    def _wanted(self, units: Units, prices: Sequence[Tensor]) -> Sequence[Values]:
        return [self._random(units, layer) for layer in units.layers]
