"""A Lagrange multiplier that follows the violation of one inequality constraint.

Written out rather than bought: the gradient of a Lagrangian by its multiplier *is* the violation, so that a library's
pass through autograd and a dual optimizer does no more than the few lines here, at ten times the cost; and it must be
part of the run's state, take no step on a skipped one, and never leave the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from setpoint.options import read_fields


@dataclass(frozen=True)
class ProportionalIntegral:
    """The nuPI update with nu = 0: `multiplier <- max(0, multiplier + integral e_t + proportional (e_t - e_(t-1)))`.

    The first step has no change to go by, so it has the integral part alone (M. Sohrabi et al., "On PI controllers for
    updating Lagrange multipliers in constrained optimization", ICML 2024, algorithm 1). With `proportional=0` it is
    gradient ascent.

    Attributes:
        proportional: gain on the change of the violation.
        integral: gain on the violation.
        restart: set the multiplier to zero when the constraint holds strictly (J. Gallego-Posada et al., NeurIPS 2022,
            section 3). What is remembered of the violation stays, so that no kick follows.

    Raises:
        ValueError: for a gain that is negative or not finite, or an integral gain of zero.
    """

    proportional: float
    integral: float
    restart: bool = False

    def __post_init__(self) -> None:
        read_fields(self, "multiplier")
        if not 0.0 <= self.proportional < math.inf:
            raise ValueError(f"proportional={self.proportional} must be a number of at least 0")
        if not 0.0 < self.integral < math.inf:
            raise ValueError(f"integral={self.integral} must be a number above 0")

    def start(self, device: torch.device) -> dict[str, Any]:
        """What `step` keeps: the multiplier, and the last violation."""
        return {
            "multiplier": torch.zeros((), dtype=torch.float64, device=device),
            "violation": torch.full((), math.nan, dtype=torch.float64, device=device),
        }

    def step(self, memory: dict[str, Any], violation: Tensor) -> Tensor:
        """Take one step and return the multiplier; a violation that is NaN leaves it as it was.

        Args:
            memory: what `start` gave; changed in place.
            violation: above 0 where the constraint is broken: a scalar tensor.
        """
        e = violation.double()
        change = torch.nan_to_num(e - memory["violation"], nan=0.0)
        moved = (memory["multiplier"] + self.integral * e + self.proportional * change).clamp_min(0.0)
        if self.restart:
            moved = torch.where(e < 0, 0.0, moved)
        usable = torch.isfinite(e)
        memory["multiplier"].copy_(torch.where(usable, moved, memory["multiplier"]))
        memory["violation"].copy_(torch.where(usable, e, memory["violation"]))
        result: Tensor = memory["multiplier"]
        return result
