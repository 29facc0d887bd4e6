"""Which units stay when only so much cost may be kept: the projection onto a budget.

Keeping the units K costs `sum_{j in K} c_j` and saves `sum_{j in K} m_j^2` of the squared norm, so the nearest point
that meets the budget solves a knapsack problem. With equal costs that is a top-k; otherwise the units are taken in
order of `m_j^2 / c_j`, and the last few are settled exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from setpoint.functional.compiled import WORTH
from setpoint.functional.device import on_one
from setpoint.functional.device.budget import largest_on_device
from setpoint.functional.device.transfer import back, few_on_one, on_cpu
from setpoint.functional.largest import largest_of_many
from setpoint.functional.ragged import PerTensor, as_list, check_magnitudes, common_number, per_tensor
from setpoint.functional.root import monotone_root
from setpoint.functional.values import Entries, Values, readable

# How many units around the cut are settled by trying every combination, where costs differ.
_CORE = 12
# The cut is searched by counting until so few units are in question; those are sorted.
_SORTED = 65_536
# Slack on sums of costs, relative to the budget: costs such as FLOPs are summed in double precision.
_SLACK = 1e-12


@overload
def project_budget(
    magnitudes: Tensor,
    budget: float,
    costs: Tensor | float | None = None,
    *,
    floors: int = 0,
) -> Tensor: ...
@overload
def project_budget(
    magnitudes: Sequence[Tensor],
    budget: float,
    costs: Sequence[Tensor | float] | None = None,
    *,
    floors: Sequence[int] | None = None,
) -> list[Tensor]: ...
@torch.no_grad()
def project_budget(
    magnitudes: Tensor | Sequence[Tensor],
    budget: float,
    costs: PerTensor = None,
    *,
    floors: int | Sequence[int] | None = None,
) -> Tensor | list[Tensor]:
    """Choose the units to keep: the largest magnitudes whose cost fits the budget.

    The kept cost is at most `budget`, and no unit left out would still fit. With equal costs the choice maximises
    the kept squared magnitude (a top-k over all tensors). With unequal costs that maximum is a knapsack problem:
    it is found exactly for up to 12 units; beyond, the choice is within one unit's worth of the maximum.
    Ties go to the earlier tensor and the lower index. Nothing is concatenated or sorted whole.

    Args:
        magnitudes: non-negative, finite; one tensor or a ragged sequence of tensors of any shape and device.
        budget: the cost that may be kept, >= 0.
        costs: cost of each unit, positive (a unit of cost 0 is always kept): per tensor a number, or a tensor that
            broadcasts to its magnitudes. All 1 by default.
        floors: per tensor, how many of its units (the largest) stay in any case.

    Returns:
        Boolean tensors shaped as the magnitudes: True where a unit stays.

    Raises:
        ValueError: for magnitudes that are negative, NaN or infinite, for negative costs, or for a budget smaller
            than what the floors cost.
    """
    tensors = as_list(magnitudes)
    each = [floors or 0] * len(tensors) if floors is None or isinstance(floors, int) else list(floors)
    kept = _large(tensors, budget, costs, each)
    if kept is None and few_on_one(tensors):
        few = on_cpu(tensors)
        near = per_tensor(costs, few[0] if isinstance(magnitudes, Tensor) else few, "costs")
        kept = back(_project(few, budget, near, each), tensors[0].device)
    elif kept is None:
        kept = _project(tensors, budget, per_tensor(costs, magnitudes, "costs"), each)
    return kept[0] if isinstance(magnitudes, Tensor) else kept


def _project(magnitudes: Sequence[Tensor], budget: float, costs: list[Tensor], floors: Sequence[int]) -> list[Tensor]:
    if not budget >= 0:
        raise ValueError(f"budget={budget} must be a number >= 0")
    problem = _Problem.of(magnitudes, costs)
    kept = [_largest(m, floor) for m, floor in zip(problem.magnitudes, floors)]
    spent = problem.cost_of(kept)
    slack = _SLACK * max(1.0, abs(budget))
    if spent > budget + slack:
        raise ValueError(f"budget={budget:g} is less than the {spent:g} that the units kept in any case cost")
    problem = problem.without(kept)
    room = budget - spent + slack
    cut = _cut(problem, room)
    for keep, score in zip(kept, problem.scores):
        keep |= score > cut.above
    chosen = _chosen(problem, cut, room)
    for index, position in chosen:
        kept[index].view(-1)[position] = True
    if not problem.equal:
        _fill(problem, kept, budget + slack - problem.cost_of(kept))
    return kept


def _large(magnitudes: Sequence[Tensor], budget: float, costs: PerTensor, floors: Sequence[int]) -> list[Tensor] | None:
    """A top-k of many, in pieces on the CPU or on a GPU, where costs are equal; None where neither applies."""
    on_device = on_one(magnitudes)
    if not on_device and (not readable(magnitudes) or sum(m.numel() for m in magnitudes) < WORTH):
        return None
    count = _common_count(budget, costs, magnitudes)
    if count is None or not 1.0 <= count < sum(m.numel() for m in magnitudes):
        return None
    if on_device:
        return largest_on_device(magnitudes, int(count), floors)
    if sum(min(floor, m.numel()) for floor, m in zip(floors, magnitudes)) > count:
        return None
    for position, tensor in enumerate(magnitudes):
        check_magnitudes(tensor, position)
    return largest_of_many([Entries(m, signed=False) for m in magnitudes], int(count), floors)


def _common_count(budget: float, costs: PerTensor, magnitudes: Sequence[Tensor | Values]) -> float | None:
    """How many units the budget has room for, if all cost the same."""
    cost = common_number(costs, magnitudes)
    if cost is None or not budget >= 0.0:
        return None
    return count_within(budget, cost) if cost > 0.0 else math.inf


def count_within(budget: float, cost: float) -> int:
    """How many units of one cost a budget has room for."""
    return int((budget + _SLACK * max(1.0, abs(budget))) / cost)


@torch.no_grad()
def project_values(
    values: Sequence[Values], budget: float, costs: Sequence[Tensor | float], *, floors: Sequence[int]
) -> list[Tensor]:
    """`project_budget` of numbers that are computed where they are looked at, with costs and floors by layer.

    Where units cost the same, nothing as large as the numbers is made but the answer.
    """
    count = _common_count(budget, costs, values)
    least = sum(min(floor, v.numel()) for floor, v in zip(floors, values))
    many = sum(v.numel() for v in values) >= WORTH and len({v.dtype for v in values}) == 1
    if many and count is not None and least <= count and all(v.device.type == "cpu" for v in values):
        return largest_of_many(values, int(min(count, sum(v.numel() for v in values))), floors)
    return project_budget([v.tensor() for v in values], budget, costs, floors=floors)


@dataclass(frozen=True)
class _Problem:
    """Units in the order they are taken: by score `m / sqrt(c)`, -1 for units that are no longer in question."""

    magnitudes: list[Tensor]
    costs: list[Tensor]
    scores: list[Tensor]
    equal: bool

    @classmethod
    def of(cls, magnitudes: Sequence[Tensor], costs: list[Tensor]) -> _Problem:
        for position, tensor in enumerate(magnitudes):
            check_magnitudes(tensor, position)
        work = [m if m.dtype in (torch.float32, torch.float64) else m.float() for m in magnitudes]
        extremes = [(float(c.min()), float(c.max())) for c, m in zip(costs, work) if m.numel()]
        equal = len({value for pair in extremes for value in pair}) <= 1
        free = not equal or any(low == 0 for low, _ in extremes)
        scores = [_score(m, c) for m, c in zip(work, costs)] if free else work
        return cls(work, costs, scores, equal)

    def without(self, kept: Sequence[Tensor]) -> _Problem:
        scores = [s.masked_fill(k, -1.0) if bool(k.any()) else s for s, k in zip(self.scores, kept)]
        return _Problem(self.magnitudes, self.costs, scores, self.equal)

    def cost_of(self, kept: Sequence[Tensor]) -> float:
        return sum(_sum(k, c) for k, c in zip(kept, self.costs))

    def cost_above(self, threshold: float) -> float:
        return sum(_sum(s > threshold, c) for s, c in zip(self.scores, self.costs))


@dataclass(frozen=True)
class _Cut:
    """Units with a score over `above` stay, those with a score up to `below` go, those between are in question."""

    above: float
    below: float


def _score(magnitudes: Tensor, costs: Tensor) -> Tensor:
    """Magnitude per square root of cost, whose square is worth per cost. What costs nothing comes first."""
    return (magnitudes.double() / costs.sqrt()).masked_fill(costs == 0, math.inf)


def _sum(mask: Tensor, costs: Tensor) -> float:
    if costs.ndim == 0:
        return int(mask.sum()) * float(costs)
    return float((mask * costs).sum())


def _largest(magnitudes: Tensor, floor: int) -> Tensor:
    keep = torch.zeros(magnitudes.shape, dtype=torch.bool, device=magnitudes.device)
    count = min(floor, magnitudes.numel())
    if count > 0:
        order = magnitudes.flatten()
        # A stable order, so that ties go to the lower index on every device.
        best = order.argmax() if count == 1 else order.argsort(stable=True, descending=True)[:count]
        keep.view(-1)[best] = True
    return keep


def _cut(problem: _Problem, room: float) -> _Cut:
    """Narrow the threshold by counting until few units are left in question, or only ties."""
    top = max((float(s.max()) for s in problem.scores if s.numel()), default=0.0)
    if problem.cost_above(-0.5) <= room:
        return _Cut(-0.5, -0.5)
    if math.isinf(top):
        top = max((float(s[s.isfinite()].max()) for s in problem.scores if bool(s.isfinite().any())), default=0.0)
    lower, upper = 0.0, top
    if problem.cost_above(0.0) <= room:  # only zeros are in question
        return _Cut(0.0, -0.5)
    if sum(s.numel() for s in problem.scores) <= _SORTED:
        return _Cut(top, 0.0)
    lower, upper = _sampled_bracket(problem, room, lower, upper)
    while _between(problem, lower, upper) > _SORTED:
        # Two bounds a few steps of the search apart; the search alone would go on to the last bit.
        root = monotone_root(lambda t: (problem.cost_above(t), None), lower, upper, level=room, max_evaluations=4)
        if (root.lower, root.upper) == (lower, upper):
            break
        lower, upper = root.lower, root.upper
    return _Cut(upper, lower)


def _between(problem: _Problem, lower: float, upper: float) -> int:
    return sum(int(((s > lower) & (s <= upper)).sum()) for s in problem.scores)


def _sampled_bracket(problem: _Problem, room: float, lower: float, upper: float) -> tuple[float, float]:
    """A narrow bracket guessed from an evenly spaced sample and confirmed by counting."""
    total = sum(s.numel() for s in problem.scores)
    stride = max(1, total // 32_768)
    sample = torch.cat([s.flatten()[::stride].double().cpu() for s in problem.scores])
    cost = torch.cat([c.expand_as(s).flatten()[::stride].cpu() for s, c in zip(problem.scores, problem.costs)])
    sample, order = sample.sort(descending=True)
    reached = cost[order].cumsum(0) * stride
    rank = int(torch.searchsorted(reached, room))
    spread = int(4 * math.sqrt(len(sample)) / 2) + 2
    for guess in (sample[max(rank - spread, 0)], sample[min(rank + spread, len(sample) - 1)]):
        point = float(guess)
        if lower < point < upper:
            if problem.cost_above(point) > room:
                lower = point
            else:
                upper = point
    return lower, upper


def _chosen(problem: _Problem, cut: _Cut, room: float) -> list[tuple[int, Tensor]]:
    """Settle the units in question: (tensor, flat positions) of those that stay."""
    if cut.above == cut.below:
        return []
    found = [((s > cut.below) & (s <= cut.above)).flatten().nonzero().squeeze(1) for s in problem.scores]
    score = torch.cat([s.flatten()[f].double().cpu() for s, f in zip(problem.scores, found)])
    cost = torch.cat([c.expand_as(s).flatten()[f].cpu() for s, c, f in zip(problem.scores, problem.costs, found)])
    order = score.argsort(stable=True, descending=True)
    room -= problem.cost_above(cut.above)
    count = int((cost[order].cumsum(0) <= room).sum())
    keep = torch.zeros(len(score), dtype=torch.bool)
    keep[order[:count]] = True
    if not problem.equal and count < len(order):
        _settle_core(score, cost, order, count, room, keep)
    picks = torch.split(keep, [len(f) for f in found])
    return [(i, f[p.to(f.device)]) for i, (f, p) in enumerate(zip(found, picks)) if bool(p.any())]


def _settle_core(score: Tensor, cost: Tensor, order: Tensor, count: int, room: float, keep: Tensor) -> None:
    """Try every combination of the units nearest to the cut and keep the one of most squared magnitude."""
    start = max(0, min(count - _CORE // 2, len(order) - _CORE))
    core = order[start : start + _CORE]
    fixed = float(cost[order[:start]].sum())
    worth = (score[core] / score[core].max().clamp_min(1e-300)).square() * cost[core]
    sets = (torch.arange(2 ** len(core)).unsqueeze(1) >> torch.arange(len(core))) & 1
    weight = sets.double() @ cost[core]
    value = (sets.double() @ worth).masked_fill(weight + fixed > room, -1.0)
    keep[core] = sets[int(value.argmax())].bool()


def _fill(problem: _Problem, kept: list[Tensor], room: float) -> None:
    """Add units that still fit, best first, until none does: with unequal costs the cut may leave room."""
    while True:
        best: tuple[float, int, int] | None = None
        for index, (score, cost, keep) in enumerate(zip(problem.scores, problem.costs, kept)):
            fits = ~keep & (score >= 0) & (cost <= room)
            if bool(fits.any()):
                position = int(score.masked_fill(~fits, -1.0).argmax())
                value = float(score.flatten()[position])
                if best is None or value > best[0]:
                    best = (value, index, position)
        if best is None:
            return
        _, index, position = best
        kept[index].view(-1)[position] = True
        cost = problem.costs[index]
        room -= float(cost.expand_as(kept[index]).flatten()[position])
