"""Gradual magnitude pruning: the baseline that everything is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from setpoint.methods.base import Method, Units


@dataclass(frozen=True)
class Magnitude(Method):
    """Remove the smallest units as the budget shrinks, and keep them at zero in between.

    Source: M. Zhu, S. Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression",
    2017. Magnitudes are compared as they are, across all layers that share a budget.
    """

    name: ClassVar[str] = "magnitude"
    holds: ClassVar[bool] = True

    def factors(self, units: Units) -> Sequence[Tensor]:
        """Of what the present budget has room for."""
        return units.cut()
