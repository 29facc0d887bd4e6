"""How long the proximal map of the group sparse envelope takes, against sorting the norms of its groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from setpoint.bench import peers
from setpoint.bench.exactness import off_envelope
from setpoint.bench.inputs import Weights, norms
from setpoint.bench.references import PASS, SORT, one_pass, pass_over
from setpoint.bench.work import Pace, Row, Work, in_turns
from setpoint.functional import prox_group_envelope

# Of the groups, the fraction that may stay; and how strong the map is, between nothing and the hard cut.
_KEPT, _STRENGTH = 0.1, 0.5
# The maps that are timed: what they are called, and with which options.
_MAPS: Mapping[str, Mapping[str, bool]] = {
    "prox_group_envelope": {"debias": True},
    "prox_group_envelope, not de-biased": {"debias": False},
}

# Called with norms, budget, strength and whether to take the de-biased map.
Plain = Callable[[Tensor, float, float, bool], Tensor]


def envelope(groups: int, device: torch.device, pace: Pace, *, plain: Plain | None = None) -> list[Row]:
    """Time the map on the norms of so many groups.

    Args:
        groups: how many.
        device: where.
        pace: how often.
        plain: another implementation to time in the same turns.

    Returns:
        Rows against `torch.sort` of the norms. The figure `off` is how far what is counted is from the budget, as a
        fraction of it.
    """
    each = norms(device, groups)
    budget = _KEPT * groups
    works = [
        Work(SORT, partial(torch.sort, each)),
        Work(PASS, partial(one_pass, [each]), SORT),
        Work("torch.topk", partial(torch.topk, each, max(1, int(budget))), SORT),
    ]
    for name, options in _MAPS.items():
        call = partial(prox_group_envelope, each, budget, _STRENGTH, **options)
        works.append(Work(name, call, SORT, partial(_off, budget, options["debias"])))
    if plain is not None:
        works.append(
            Work("plain envelope", partial(plain, each, budget, _STRENGTH, True), SORT, partial(_off, budget, True))
        )
    return in_turns(f"norms of {groups:,} groups", works, device, pace)


def small_groups(weights: Weights, pace: Pace) -> list[Row]:
    """Time the whole map on the rows of a matrix: their norms, the factors, and the product."""
    (matrix,) = weights.tensors
    works = [
        pass_over(weights),
        Work("norms, prox_group_envelope and product", partial(_whole, matrix), PASS),
        peers.group_lasso(weights),
    ]
    return in_turns(f"{weights.name} as groups", works, weights.device, pace)


def _whole(matrix: Tensor) -> Tensor:
    each: Tensor = torch.linalg.vector_norm(matrix, dim=1)
    factors = prox_group_envelope(each, _KEPT * len(each), _STRENGTH, debias=True)
    return matrix * factors.unsqueeze(1)


def _off(budget: float, debias: bool, factors: Any) -> dict[str, float]:
    return off_envelope(factors, budget, _STRENGTH, debias=debias)
