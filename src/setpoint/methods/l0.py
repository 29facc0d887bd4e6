"""Hard-concrete gates under a constraint on the cost of those that are open, as a training method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from setpoint.functional.hard_concrete import hard_concrete, hard_concrete_open, hard_concrete_slope
from setpoint.methods.base import Method, Units, as_factors
from setpoint.methods.draws import seeded
from setpoint.methods.multiplier import ProportionalIntegral
from setpoint.reading import read

# Bounds of log alpha: gates that are quite open or shut can be learned back within a part of the run. What is counted
# is open gates, not probabilities, so that a shut gate costs nothing at any bound.
_BOUNDS = (-6.0, 4.0)
# Decay rates of Adam's moments and of the average size of a slope.
_FIRST, _SECOND, _SIZE = 0.9, 0.99, 0.99
# A step counts for at most so many times what the steps before it did on average; and so do these beside it, each of
# them, while they are fewer than that.
_BOUND = 10.0
# The least that a gate's slopes come to, beside those of the others, for its steps to be of full size.
_LEAST = 1e-15
# The gates' step size, and how far they must be able to go within the sparsify phase.
_RATE, _TRAVEL = 0.05, 30.0


@dataclass(frozen=True)
class ConstrainedL0(Method):
    """Learn which units to keep: a random gate on each, and a multiplier that makes the gates' cost meet the budget.

    Every unit is multiplied by a hard-concrete gate, drawn anew at each step of the sparsify phase and at its median in
    evaluation. The gates descend, by an Adam of their own, on the loss plus a multiplier times the expected cost of
    what is open (J. Gallego-Posada et al., "Controlled sparsity via constrained optimization", NeurIPS 2022; the gates:
    C. Louizos et al., ICLR 2018). The multiplier follows the *actual* cost of the gates whose median is open, against
    the budget of the schedule, so that the end is on target without a search. At the freeze the medians are multiplied
    into the weights and the gates are gone.

    There is one multiplier for each budget: one for the model under `scope="global"`, one a layer under `"uniform"`.

    Attributes:
        lr: step size of the gates' Adam, on log alpha. By default 0.05, or more where the sparsify phase is so short
            that the gates could not get from one end of their range to the other and back several times.
        opening: probability that a gate is open at the start, in (0.5, 1).
        proportional: gain of the multiplier on changes of the violation, which is the logarithm of actual by allowed
            cost, at most 1 in size; the multiplier is in units of the average slope of the loss by the gates.
        integral: its gain on the violation itself.
        restart: set the multiplier to zero as soon as the constraint holds, as the paper does.
        seed: of the gates' random numbers. They are the same on all ranks and do not touch torch's own.
    """

    lr: float | None = None
    opening: float = 0.95
    proportional: float = 10.0
    integral: float = 0.1
    restart: bool = False
    seed: int = 0

    name: ClassVar[str] = "l0"
    gated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        span = _BOUNDS[1] - _BOUNDS[0]
        if self.lr is not None and not 0.0 < self.lr <= span:
            raise ValueError(f"l0 lr={self.lr} must be a number above 0, and at most {span:g}, a gate's whole range")
        if not 0.5 < self.opening < 1.0:
            raise ValueError(f"l0 opening={self.opening} must lie between 0.5 and 1")
        _ = self._multiplier  # refuses gains out of range

    @property
    def _multiplier(self) -> ProportionalIntegral:
        return ProportionalIntegral(self.proportional, self.integral, self.restart)

    def factors(self, units: Units) -> Sequence[Tensor | None]:
        """Nothing: the gates work at every step."""
        return [None] * len(units.layers)

    def gates(self, units: Units, felt: Sequence[tuple[Tensor, Tensor]] | None) -> Sequence[tuple[Tensor, Tensor]]:
        """A sample for the next step, and the medians."""
        if not units.memory:
            self._start(units)
        elif felt is not None:
            self._learn(units, felt)
        alpha = units.memory["log_alpha"]
        sample = hard_concrete(alpha, self._noise(units, alpha))
        return list(zip(_apart(units, sample), _apart(units, hard_concrete(alpha))))

    def scores(self, units: Units) -> Sequence[Tensor]:
        """By the gates, whatever the cost, which the gates have felt already; among equal ones by magnitude."""
        if not units.memory:
            return units.magnitudes
        top = max(read([m.max() for m in units.magnitudes])) or 1.0
        return [
            a.double().sigmoid() * (1.0 + 1e-9 * m.double() / top) * c.sqrt()
            for a, m, c in zip(_apart(units, units.memory["log_alpha"]), units.magnitudes, units.costs)
        ]

    def fold(self, units: Units, kept: Sequence[Tensor]) -> Sequence[Tensor]:
        """The medians; for a unit that is kept though its gate is shut, the probability that it is open."""
        if not units.memory:
            return as_factors(kept)
        folded = _apart(units, _folded(units.memory["log_alpha"]))
        return [f.masked_fill(~k, 0.0) for f, k in zip(folded, kept)]

    def gauges(self, units: Units) -> dict[str, float]:
        """The multiplier, and by how much open gates cost more than they may (a logarithm)."""
        memory = units.memory
        return {"multiplier": float(memory["multiplier"]), "violation": float(memory["violation"])}

    def _start(self, units: Units) -> None:
        shut = math.log(self.opening / (1.0 - self.opening)) - float(hard_concrete_open(torch.zeros(())).logit())
        alpha = torch.full((sum(map(math.prod, _counts(units))),), shut, device=units.layers[0].device)
        # All gates of a budget in one tensor, so that a step takes few operations however many layers there are.
        units.memory.update(
            log_alpha=alpha,
            first=torch.zeros_like(alpha),
            second=torch.zeros_like(alpha),
            size=torch.zeros((), device=alpha.device),
            unit=torch.ones((), dtype=torch.float64, device=alpha.device),
            steps=0,
            **self._multiplier.start(alpha.device),
        )

    def _noise(self, units: Units, like: Tensor) -> Tensor:
        generator = seeded(like.device, self.seed, units.memory["steps"], units.layers[0].name)
        return torch.rand(like.shape, generator=generator, device=like.device)

    def _learn(self, units: Units, felt: Sequence[tuple[Tensor, Tensor]]) -> None:
        memory: dict[str, Any] = units.memory
        memory["steps"] += 1
        alpha = memory["log_alpha"]
        pull = self._pull(memory, felt)
        p = hard_concrete_open(alpha)
        opened = p > 0.5
        if units.budget.whole is None:
            cost = _spread(units.budget.costs, units, alpha)
            open_cost = opened.sum() * cost if cost.ndim == 0 else (cost * opened).sum()
        else:
            # Prices move with the widths, and slowly: they are looked up as often as the schedule makes updates.
            apart = _apart(units, opened)
            if memory["steps"] % units.elapsed == 1 or units.elapsed == 1:
                memory["prices"] = [float(p) for p in units.budget.prices(apart)]
            cost = _spread([torch.tensor(p) for p in memory["prices"]], units, alpha)
            open_cost = torch.tensor(units.budget.spent(apart), device=alpha.device)
        # No room at all is as good as very little: the violation is at its bound either way.
        violation = torch.log(open_cost / max(units.budget.room(units.ramp), 1e-30)).clamp(-1.0, 1.0)
        size = self._size(memory, memory["steps"])
        multiplier = self._multiplier.step(memory, violation) * torch.where(size > 0, size, 1.0)
        lr = self.lr or max(_RATE, _TRAVEL * units.share / units.elapsed)
        gradient = torch.addcmul(pull, p * (1.0 - p), (multiplier * (cost / cost.mean())).to(pull.dtype))
        self._descend(alpha, memory["first"], memory["second"], gradient, memory["steps"], lr)

    def _pull(self, memory: dict[str, Any], felt: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The loss's pull at each gate, in the unit in which all pulls are remembered.

        Units are powers of two: the scale of the loss changes no bit, and no square overflows or vanishes.
        """
        alpha = memory["log_alpha"]
        slopes = torch.cat([slope.flatten().to(alpha.device) for _, slope in felt])
        peak = _power(torch.linalg.vector_norm(slopes, torch.inf).double())
        slope_of_z = hard_concrete_slope(_together([z for z, _ in felt], alpha))
        pull = slopes.div_(peak).to(alpha.dtype).mul_(slope_of_z)
        moving = (pull != 0).sum().clamp_min(1)
        size = (torch.dot(pull, pull) / moving).sqrt() * peak
        counts = self._counting(memory, size)
        memory["size"].lerp_((counts * size / memory["unit"]).to(alpha.dtype), 1.0 - _SIZE)
        return pull.mul_(counts * (peak / memory["unit"]))

    def _counting(self, memory: dict[str, Any], size: Tensor) -> Tensor:
        """Which part of a step counts, given the average size of its pulls; a new unit is a new weight of the past."""
        before, old = memory["steps"] - 1, memory["unit"].clone()
        usual = self._size(memory, max(1, before)) * old
        most = _BOUND * before if before < _BOUND else math.inf
        unit = torch.where(usual > 0, torch.minimum(old, old * (most * size / usual)), size)
        memory["unit"].copy_(torch.where(size > 0, _power(unit), old))
        usual *= memory["unit"] / old
        return torch.where(usual > 0, (_BOUND * usual / size).clamp_max(1.0), 1.0)

    def _size(self, memory: dict[str, Any], steps: int) -> Tensor:
        """Average size of the loss's pull at a gate that moves, over the last steps."""
        size: Tensor = memory["size"] / (1.0 - _SIZE**steps)
        return size

    def _descend(self, a: Tensor, first: Tensor, second: Tensor, gradient: Tensor, step: int, lr: float) -> None:
        """One step of Adam."""
        first.lerp_(gradient, 1.0 - _FIRST)
        second.mul_(_SECOND).addcmul_(gradient, gradient, value=1.0 - _SECOND)
        root = (second / (1.0 - _SECOND**step)).sqrt_().clamp_min_(_LEAST)
        a.addcdiv_(first, root, value=-lr / (1.0 - _FIRST**step)).clamp_(*_BOUNDS)


def _power(number: Tensor) -> Tensor:
    """The largest power of two that is not above a number; for 0 any."""
    return torch.exp2(torch.frexp(number).exponent.double() - 1.0)


def _folded(log_alpha: Tensor) -> Tensor:
    median = hard_concrete(log_alpha)
    return torch.where(median > 0, median, hard_concrete_open(log_alpha))


def _counts(units: Units) -> list[tuple[int, ...]]:
    return [partition.counts for partition in units.partitions]


def _apart(units: Units, flat: Tensor) -> list[Tensor]:
    """One value a unit, layer by layer and on the layers' devices."""
    counts = _counts(units)
    parts = torch.split(flat, [math.prod(c) for c in counts])
    return [part.reshape(c).to(layer.device) for part, c, layer in zip(parts, counts, units.layers)]


def _together(apart: Sequence[Tensor], like: Tensor) -> Tensor:
    """The inverse, as another tensor is."""
    return torch.cat([t.flatten().to(like.device, like.dtype) for t in apart])


def _spread(costs: Sequence[Tensor], units: Units, like: Tensor) -> Tensor:
    """What each gate costs; one number where that is the same for all.

    Costs are on the CPU: to look at them at every step is not to wait for a GPU.
    """
    if all(c.numel() == 1 for c in costs) and len({float(c) for c in costs}) == 1:
        return torch.full((), float(costs[0]), dtype=like.dtype, device=like.device)
    row = torch.cat([c.expand(counts).flatten() for c, counts in zip(costs, _counts(units))])
    return row.to(like.device, like.dtype, non_blocking=True)
