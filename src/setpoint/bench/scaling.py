"""How the time of projections grows with the number of weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from setpoint.bench.inputs import norms, one_tensor
from setpoint.bench.projection import SPARSITY
from setpoint.bench.references import PASS, SORT, pass_over
from setpoint.bench.work import Pace, Row, Work, in_turns
from setpoint.functional import project_budget, project_gsp, prox_group_envelope

SIZES = tuple(10**power for power in range(4, 9))
LINEAR = "a slope of 1"


def at_size(size: int, device: torch.device, pace: Pace, *, sort: bool = True) -> list[Row]:
    """Time projections of one tensor of so many weights, against one pass over it.

    Args:
        size: number of weights.
        device: where.
        pace: how often.
        sort: whether `torch.sort` is timed as well.
    """
    return in_turns(f"{size:,} weights", _works(size, device, sort=sort), device, pace)


def slopes(sizes: Sequence[int], rows: Sequence[Sequence[Row]]) -> list[Row]:
    """The slope of the logarithm of each work's time against that of the size, fitted to all sizes.

    Args:
        sizes: at least two, ascending.
        rows: of each size.

    Returns:
        A row for each work, whose figures are the slopes from each size to the next.
    """
    times: dict[str, list[float]] = {}
    for each in rows:
        for row in each:
            times.setdefault(row.work, []).append(row.ms or math.nan)
    return [_slope(work, sizes, taken) for work, taken in times.items()]


def fitted_slope(sizes: Sequence[int], times: Sequence[float]) -> float:
    """The slope of the line of least squares through the logarithms."""
    x, y = ([math.log(v) for v in values] for values in (sizes, times))
    middle = sum(x) / len(x)
    return sum((a - middle) * b for a, b in zip(x, y)) / sum((a - middle) ** 2 for a in x)


def _slope(work: str, sizes: Sequence[int], times: Sequence[float]) -> Row:
    steps = {
        f"{sizes[i]:.0e} to {sizes[i + 1]:.0e}".replace("e+0", "e"): fitted_slope(sizes[i : i + 2], times[i : i + 2])
        for i in range(len(sizes) - 1)
    }
    case = f"log time against log size, {sizes[0]:,} to {sizes[-1]:,} weights"
    return Row(case, work, fitted_slope(sizes, times), LINEAR, figures=steps)


def _works(size: int, device: torch.device, *, sort: bool) -> list[Work]:
    weights, groups = one_tensor(device, size), norms(device, size)
    budget = (1.0 - SPARSITY) * size
    calls: dict[str, Callable[[], Any]] = {
        "project_gsp": partial(project_gsp, weights.vectors, SPARSITY),
        "project_budget": partial(project_budget, groups, int(budget)),
        "prox_group_envelope": partial(_envelope, groups, budget),
    }
    if sort:
        calls[SORT] = partial(torch.sort, groups)
    return [pass_over(weights), *(Work(name, call, PASS) for name, call in calls.items())]


def _envelope(groups: Tensor, budget: float) -> Tensor:
    return prox_group_envelope(groups, budget, 0.5, debias=True)
