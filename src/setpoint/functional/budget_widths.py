"""Which units stay when cost depends on how many stay in each group: widths that multiply one another.

The weight between two groups of widths a and b has `a b` entries, so what a unit costs depends on how many others stay.
Within a group the largest units stay, so that only the widths are to be found: those that keep the most squared
magnitude at a cost within the budget. They are found by prices: at fixed prices of the groups' units the best choice is
a threshold on `m^2 / price`; the prices are the marginal costs at the widths found, and the two are iterated. What is
left of the budget is then filled, unit by unit at its real cost, until nothing fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from setpoint.functional.device.transfer import back, few_on_one, on_cpu

# Rounds of prices and widths; they settle after a few, and any widths within the budget are a valid start to fill from.
_ROUNDS = 6

Widths = Sequence[int]
WidthCost = Callable[[Widths], float]


@torch.no_grad()
def project_widths(
    magnitudes: Sequence[Tensor],
    budget: float,
    cost: WidthCost,
    *,
    floors: Sequence[int] | None = None,
    multiple: int = 1,
) -> list[Tensor]:
    """Choose the units to keep, group by group.

    The cost is at most `budget`, and no group could be given another step of width. Ties go to the lower index.

    Args:
        magnitudes: per group the units' magnitudes, non-negative and finite, of shape (units,).
        budget: the cost that may be kept.
        cost: of the widths of all groups; it must not fall when a width grows.
        floors: per group, how many units stay in any case; raised to the next width that is possible.
        multiple: widths are multiples of this, or the group's own full width.

    Returns:
        Boolean tensors of shape (units,): True where a unit stays.

    Raises:
        ValueError: if the floors alone cost more than the budget, or for a multiple below 1.
    """
    if multiple < 1:
        raise ValueError(f"multiple={multiple} must be at least 1")
    if few_on_one(magnitudes):
        kept = project_widths(on_cpu(magnitudes), budget, cost, floors=floors, multiple=multiple)
        return back(kept, magnitudes[0].device)
    orders = [m.detach().argsort(descending=True, stable=True) for m in magnitudes]
    groups = [_Group.of(m, order, multiple) for m, order in zip(magnitudes, orders)]
    least = [group.steps_for(floor) for group, floor in zip(groups, floors or [0] * len(groups))]
    if _cost(cost, groups, least) > budget * (1 + 1e-12):
        raise ValueError(
            f"a budget of {budget:g} was asked for, but at most {_cost(cost, groups, least):g} can be reached: "
            "the units that no group may lose cost as much"
        )
    steps = _fill(groups, _search(groups, least, budget, cost), budget, cost)
    return [
        torch.zeros_like(order, dtype=torch.bool).scatter_(0, order[: group.width(n)], True)
        for order, group, n in zip(orders, groups, steps)
    ]


class _Group:
    """A group's units in steps of width, the largest first, with what each step is worth."""

    def __init__(self, worth: list[float], ends: list[int]) -> None:
        self.worth, self.ends = worth, ends

    @classmethod
    def of(cls, magnitudes: Tensor, order: Tensor, multiple: int) -> _Group:
        squares = magnitudes.detach().double().square()[order].cpu()
        sums = [float(part.sum()) for part in torch.split(squares, multiple)]
        ends = [min(multiple * (i + 1), len(squares)) for i in range(len(sums))]
        return cls(sums, ends)

    def width(self, steps: int) -> int:
        return self.ends[steps - 1] if steps else 0

    def steps_for(self, width: int) -> int:
        """The fewest steps with at least this width, or all."""
        return next((i + 1 for i, end in enumerate(self.ends) if end >= width), len(self.ends)) if width > 0 else 0


def _cost(cost: WidthCost, groups: Sequence[_Group], steps: Sequence[int]) -> float:
    return cost([group.width(n) for group, n in zip(groups, steps)])


def _search(groups: Sequence[_Group], least: list[int], budget: float, cost: WidthCost) -> list[int]:
    """Steps within the budget, by thresholds at prices that follow the widths."""
    steps = [len(g.ends) for g in groups]
    if _cost(cost, groups, steps) <= budget:
        return steps
    best, worth = least, -1.0
    for _ in range(_ROUNDS):
        found = _threshold(groups, least, budget, cost, _prices(cost, groups, steps))
        kept = sum(sum(g.worth[:n]) for g, n in zip(groups, found))
        if kept > worth:
            best, worth = found, kept
        if found == steps:
            break
        steps = found
    return best


def _prices(cost: WidthCost, groups: Sequence[_Group], steps: Sequence[int]) -> list[float]:
    """What the last step of each group costs, or its first where it has none; a trifle where that is nothing."""
    here = _cost(cost, groups, steps)
    prices = []
    for i, n in enumerate(steps):
        other = list(steps)
        other[i] = n - 1 if n else 1
        prices.append(max(abs(here - _cost(cost, groups, other)), 1e-12 * max(here, 1.0)))
    return prices


def _threshold(
    groups: Sequence[_Group], least: list[int], budget: float, cost: WidthCost, prices: Sequence[float]
) -> list[int]:
    """The most steps above a common threshold on worth by price that fit the budget."""
    # A later step is worth no more than an earlier one, except for a last step that is shorter.
    ratios = [[w / price for w in g.worth] for g, price in zip(groups, prices)]
    levels = sorted({r for row in ratios for r in row}, reverse=True)

    def at(index: int) -> list[int]:
        level = levels[index] if index >= 0 else math.inf
        counts = [next((i for i, r in enumerate(row) if r < level), len(row)) for row in ratios]
        return [max(c, n) for c, n in zip(counts, least)]

    low, high = -1, len(levels) - 1  # `low` fits
    while low < high:
        middle = (low + high + 1) // 2
        if _cost(cost, groups, at(middle)) <= budget:
            low = middle
        else:
            high = middle - 1
    return at(low)


def _fill(groups: Sequence[_Group], steps: Sequence[int], budget: float, cost: WidthCost) -> list[int]:
    """Give the groups further steps, the best by worth and real cost first, until none fits."""
    steps = list(steps)
    while True:
        here = _cost(cost, groups, steps)
        choice, best = -1, -1.0
        for i, group in enumerate(groups):
            if steps[i] == len(group.ends):
                continue
            more = _cost(cost, groups, [*steps[:i], steps[i] + 1, *steps[i + 1 :]])
            ratio = group.worth[steps[i]] / max(more - here, 1e-12 * max(here, 1.0))
            if more <= budget * (1 + 1e-12) and ratio > best:
                choice, best = i, ratio
        if choice < 0:
            return steps
        steps[choice] += 1
