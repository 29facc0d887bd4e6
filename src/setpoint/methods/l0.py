"""Hard-concrete gates under a constraint on the cost of those that are open, as a training method."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from setpoint.functional.compiled import WORTH
from setpoint.functional.hard_concrete import hard_concrete, hard_concrete_open
from setpoint.functional.hard_concrete_steps import (
    BOUNDS,
    FIRST,
    PIECE,
    SECOND,
    SHUT,
    Descent,
    Key,
    Slopes,
    Survey,
    compiled_slopes,
    draw,
    power_below,
    together,
)
from setpoint.gates import FeltGates
from setpoint.methods.base import Method, Units
from setpoint.methods.multiplier import ProportionalIntegral
from setpoint.reading import read

# Decay rate of the average size of a slope.
_SIZE = 0.99
# A step counts for at most so many times what the steps before it did on average; and so do these beside it, each of
# them, while they are fewer than that.
_BOUND = 10.0
# The gates' step size, and how far they must be able to go within the sparsify phase.
_RATE, _TRAVEL = 0.05, 30.0
# Gates of small layers that are worked on together, where that takes little memory: so a step takes few operations
# however many layers there are.
_FEW = 1 << 22


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
        span = BOUNDS[1] - BOUNDS[0]
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

    def gates(self, units: Units, felt: Sequence[tuple[Tensor, Tensor]] | None) -> Sequence[tuple[Tensor, Any]]:
        """A sample for the next step, and the medians."""
        if not units.memory:
            self._start(units)
        elif felt is not None:
            self._learn(units, felt)
        return _Gates(units, Key.of(self.seed, units.memory["steps"], units.layers[0].name))

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
            return kept
        folded = _apart(units, _folded(units.memory["log_alpha"]))
        return [f.masked_fill(~k, 0.0) for f, k in zip(folded, kept)]

    def gauges(self, units: Units) -> dict[str, float]:
        """The multiplier, and by how much open gates cost more than they may (a logarithm)."""
        memory = units.memory
        return {"multiplier": float(memory["multiplier"]), "violation": float(memory["violation"])}

    def _start(self, units: Units) -> None:
        opened = math.log(self.opening / (1.0 - self.opening)) + SHUT
        # All gates of a budget in one tensor, so that those of small layers take a few operations together.
        alpha = torch.full((sum(_sizes(units)),), opened, device=units.layers[0].device)
        units.memory.update(
            log_alpha=alpha,
            first=torch.zeros_like(alpha, dtype=torch.bfloat16),
            second=torch.zeros_like(alpha, dtype=torch.bfloat16),
            size=torch.zeros((), device=alpha.device),
            unit=torch.ones((), dtype=torch.float64, device=alpha.device),
            steps=0,
            **self._multiplier.start(alpha.device),
        )

    def _learn(self, units: Units, felt: Sequence[tuple[Tensor, Tensor]]) -> None:
        memory: dict[str, Any] = units.memory
        memory["steps"] += 1
        groups = [_Group(units, felt, places) for places in _grouped(units)]
        peak, factor, size = self._scale(memory, together([group.survey() for group in groups]))
        costs, open_cost = self._costs(units, groups)
        # No room at all is as good as very little: the violation is at its bound either way.
        violation = torch.log(open_cost / max(units.budget.room(units.ramp), 1e-30)).clamp(-1.0, 1.0)
        multiplier = self._multiplier.step(memory, violation) * torch.where(size > 0, size, 1.0)
        mean = torch.stack([group.total(cost) for group, cost in zip(groups, costs)]).sum() / len(memory["log_alpha"])
        lr = self.lr or max(_RATE, _TRAVEL * units.share / units.elapsed)
        steps = memory["steps"]
        key = Key.of("rounding", self.seed, steps, units.layers[0].name)
        step = Descent(peak, factor, lr / (1.0 - FIRST**steps), 1.0 / (1.0 - SECOND**steps), key)
        for group, cost in zip(groups, costs):
            group.descend((multiplier * (cost / mean)).float(), step)

    def _costs(self, units: Units, groups: Sequence[_Group]) -> tuple[list[Tensor], Tensor]:
        """What each gate costs, by group, and what those that are open cost together."""
        alpha, memory = units.memory["log_alpha"], units.memory
        if units.budget.whole is None:
            costs = [group.cost() for group in groups]
            return costs, torch.stack([group.open_cost(cost) for group, cost in zip(groups, costs)]).sum()
        # Prices move with the widths, and slowly: they are looked up as often as the schedule makes updates.
        apart = _apart(units, alpha > SHUT)
        if memory["steps"] % units.elapsed == 1 or units.elapsed == 1:
            memory["prices"] = [float(p) for p in units.budget.prices(apart)]
        prices = [torch.tensor(price) for price in memory["prices"]]
        costs = [group.spread(prices[group.places.start : group.places.stop]) for group in groups]
        return costs, torch.tensor(units.budget.spent(apart), device=alpha.device)

    def _scale(self, memory: dict[str, Any], found: Survey) -> tuple[Tensor, Tensor, Tensor]:
        """The unit of this step's slopes, what they are multiplied by then, and the size of a pull.

        Units are powers of two: the scale of the loss changes no bit, and no square overflows or vanishes.
        """
        peak = power_below(found.peak)
        size = (found.square / found.moving.clamp_min(1.0)).sqrt() * peak
        counts = self._counting(memory, size)
        memory["size"].lerp_((counts * size / memory["unit"]).float(), 1.0 - _SIZE)
        return peak, counts * (peak / memory["unit"]), self._size(memory, memory["steps"])

    def _counting(self, memory: dict[str, Any], size: Tensor) -> Tensor:
        """Which part of a step counts, given the average size of its pulls; a new unit is a new weight of the past."""
        before, old = memory["steps"] - 1, memory["unit"].clone()
        usual = self._size(memory, max(1, before)) * old
        most = _BOUND * before if before < _BOUND else math.inf
        unit = torch.where(usual > 0, torch.minimum(old, old * (most * size / usual)), size)
        memory["unit"].copy_(torch.where(size > 0, power_below(unit), old))
        usual *= memory["unit"] / old
        return torch.where(usual > 0, (_BOUND * usual / size).clamp_max(1.0), 1.0)

    def _size(self, memory: dict[str, Any], steps: int) -> Tensor:
        """Average size of the loss's pull at a gate that moves, over the last steps."""
        size: Tensor = memory["size"] / (1.0 - _SIZE**steps)
        return size


class _Gates(Sequence[tuple[Tensor, Any]]):
    """Each layer's gates: a sample, drawn when it is asked for, and the medians, computed when they are looked at."""

    def __init__(self, units: Units, key: Key) -> None:
        self._units, self._key = units, key
        ends = list(accumulate(_sizes(units), initial=0))
        self._ranges = list(pairwise(ends))

    def __len__(self) -> int:
        return len(self._ranges)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        begin, end = self._ranges[place]
        alpha = self._units.memory["log_alpha"][begin:end]
        counts, device = self._units.partitions[place].counts, self._units.layers[place].device
        return draw(alpha, begin, self._key).reshape(counts).to(device), _Medians(alpha)


@dataclass(frozen=True, eq=False)
class _Medians:
    log_alpha: Tensor

    def __call__(self) -> Tensor:
        return hard_concrete(self.log_alpha)


class _Group:
    """Layers whose gates take a step together: a large one, or consecutive small ones."""

    def __init__(self, units: Units, felt: Sequence[tuple[Tensor, Tensor]], places: range) -> None:
        self.places = places
        self._units, self._felt = units, felt
        sizes = _sizes(units)
        self._begin = sum(sizes[: places.start])
        self._part = slice(self._begin, sum(sizes[: places.stop]))
        self._kept: Slopes | None = None
        self._keeps = sum(sizes) <= _FEW

    def survey(self) -> Survey:
        """What the loss pulls at the gates."""
        return self._slopes.survey()

    def descend(self, charge: Tensor, step: Descent) -> None:
        """Take a step."""
        first, second = self._units.memory["first"], self._units.memory["second"]
        self._slopes.descend(self._alpha, first[self._part], second[self._part], charge, self._begin, step)

    def cost(self) -> Tensor:
        """What each gate costs at what the budget charges: one number where that is the same for all."""
        return self.spread([self._units.budget.costs[i] for i in self.places])

    def spread(self, costs: Sequence[Tensor]) -> Tensor:
        """The same of costs by layer. They are on the CPU: to look at them at every step is not to wait for a GPU."""
        alpha = self._alpha
        if all(c.numel() == 1 for c in costs) and len({float(c) for c in costs}) == 1:
            return torch.full((), float(costs[0]), dtype=torch.float64, device=alpha.device)
        counts = [self._units.partitions[i].counts for i in self.places]
        row = torch.cat([c.expand(n).flatten() for c, n in zip(costs, counts)])
        return row.to(alpha.device, alpha.dtype, non_blocking=True)

    def total(self, cost: Tensor) -> Tensor:
        """What all gates cost together."""
        return cost * len(self._alpha) if cost.ndim == 0 else cost.sum(dtype=torch.float64)

    def open_cost(self, cost: Tensor) -> Tensor:
        """What those cost together whose median is open."""
        opened = self._alpha > SHUT
        return torch.count_nonzero(opened) * cost if cost.ndim == 0 else (cost * opened).sum(dtype=torch.float64)

    @property
    def _alpha(self) -> Tensor:
        alpha: Tensor = self._units.memory["log_alpha"][self._part]
        return alpha

    @property
    def _slopes(self) -> Slopes:
        found = self._kept or self._compiled() or self._gathered()
        if self._keeps:
            self._kept = found
        return found

    def _compiled(self) -> Slopes | None:
        if len(self.places) > 1 or not isinstance(self._felt, FeltGates):
            return None
        entries = self._felt.entries(self.places.start)
        return None if entries is None else compiled_slopes(*entries, self._alpha)

    def _gathered(self) -> Slopes:
        device = self._units.memory["log_alpha"].device
        pairs = [self._felt[i] for i in self.places]
        gates, slopes = ([t.flatten().to(device) for t in each] for each in zip(*pairs))
        return Slopes(*(each[0] if len(each) == 1 else torch.cat(each) for each in (slopes, gates)))


def _grouped(units: Units) -> Iterator[range]:
    """Places of the layers that take a step together."""
    limit = PIECE if units.memory["log_alpha"].device.type == "cpu" else _FEW
    begin, total = 0, 0
    for place, size in enumerate(_sizes(units)):
        if place > begin and (total + size > limit or size >= WORTH):
            yield range(begin, place)
            begin, total = place, 0
        total += size
        if size >= WORTH:
            yield range(begin, place + 1)
            begin, total = place + 1, 0
    if begin < len(units.layers):
        yield range(begin, len(units.layers))


def _folded(log_alpha: Tensor) -> Tensor:
    median = hard_concrete(log_alpha)
    return torch.where(median > 0, median, hard_concrete_open(log_alpha))


def _counts(units: Units) -> list[tuple[int, ...]]:
    return [partition.counts for partition in units.partitions]


def _sizes(units: Units) -> list[int]:
    return [math.prod(counts) for counts in _counts(units)]


def _apart(units: Units, flat: Tensor) -> list[Tensor]:
    """One value a unit, layer by layer and on the layers' devices."""
    counts = _counts(units)
    parts = torch.split(flat, _sizes(units))
    return [part.reshape(c).to(layer.device) for part, c, layer in zip(parts, counts, units.layers)]
