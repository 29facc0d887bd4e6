"""Rigging the lottery: what is dropped grows again where the loss pulls most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from setpoint.functional.values import Values
from setpoint.methods.base import Units
from setpoint.methods.moving import MovingSupport
from setpoint.methods.support import by_price


@dataclass(frozen=True)
class RigL(MovingSupport):
    """Drop the smallest units and grow those whose gradient is largest, though their weights are zero.

    The gradient is the one that the optimizer is about to step with: accumulated, averaged over ranks and unscaled.
    Units without any gradient grow at random, after all others.

    Source: U. Evci, T. Gale, J. Menick, P. S. Castro, E. Elsen, "Rigging the lottery: making all tickets winners",
    ICML 2020, Algorithm 1. There an update takes the place of an optimizer's step (`replace_step=True`).
    """

    name: ClassVar[str] = "rigl"
    sees_gradients: ClassVar[bool] = True

    def _wanted(self, units: Units, prices: Sequence[Tensor]) -> Sequence[Values]:
        return by_price(units.gradients, units, prices)
