"""Proximal maps of the group sparse envelope, on the norms of the groups.

Minimising `strength R(x) + 1/2 sum_j h_j |x_j - z_j|^2` over x for fixed u gives `x_j = z_j u_j / (u_j + rho_j)` with
`rho_j = strength w_j / h_j`; the u that is then best is `clip(alpha c_j - rho_j, 0, 1)`, where
`c_j = |z_j| sqrt(w_j / d_j)` and alpha spends the budget. So the groups of the largest norms are scaled by
`1 / (1 + rho_j)`, and the others lose `(strength / h_j) sqrt(w_j d_j) / alpha` of their norm, down to exactly zero.

Sources: as in `setpoint.functional.envelope`; for the metric, J. Yun, A. C. Lozano, E. Yang, "Adaptive proximal
gradient methods for structured neural networks" (ProxGen), NeurIPS 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import overload

import torch
from torch import Tensor

from setpoint.functional.compiled import WORTH
from setpoint.functional.device import in_a_row, on_one, parted
from setpoint.functional.device.transfer import few_on_one
from setpoint.functional.envelope import Groups
from setpoint.functional.envelope_values import factors_of_values
from setpoint.functional.ragged import PerTensor, as_list, beside_row, per_tensor
from setpoint.functional.values import Values

# Costs, weights and metric.
_Beside = tuple[PerTensor, PerTensor, PerTensor]

# Slack on the largest strength of the de-biased map, for strengths computed as a quotient.
_SLACK = 1e-12
# Stands for a ramp of no width.
_STEP = 1e-200


@overload
def prox_group_envelope(
    magnitudes: Tensor,
    budget: float,
    strength: float,
    costs: Tensor | float | None = None,
    weights: Tensor | float | None = None,
    metric: Tensor | float | None = None,
    *,
    debias: bool = False,
) -> Tensor: ...
@overload
def prox_group_envelope(
    magnitudes: Sequence[Tensor],
    budget: float,
    strength: float,
    costs: Sequence[Tensor | float] | None = None,
    weights: Sequence[Tensor | float] | None = None,
    metric: Sequence[Tensor | float] | None = None,
    *,
    debias: bool = False,
) -> list[Tensor]: ...
@torch.no_grad()
def prox_group_envelope(
    magnitudes: Tensor | Sequence[Tensor],
    budget: float,
    strength: float,
    costs: PerTensor = None,
    weights: PerTensor = None,
    metric: PerTensor = None,
    *,
    debias: bool = False,
) -> Tensor | list[Tensor]:
    """What to multiply each group by, to apply the proximal map of `strength * group_envelope`.

    With `rho_j = strength w_j / h_j` the factors are

        u_j / (u_j + rho_j),              u_j = clip(alpha c_j - rho_j, 0, 1),                   or de-biased
        u_j / (u_j + rho_j (1 - u_j)),    u_j = clip((alpha c_j - rho_j) / (1 - rho_j), 0, 1),

    where alpha makes `sum_j d_j u_j` the budget. The de-biased map is the proximal map of
    `strength * (group_envelope - 1/2 sum_j w_j r_j^2)`, a penalty that is zero exactly where the budget is kept:
    groups that stay whole are not shrunk at all (their factor is exactly 1), and points within the budget do not move.
    With one rho for all groups it is `1 + rho'` times the plain map of strength `rho' = rho / (1 - rho)`. It runs from
    the identity at strength 0 to the hard choice by `h_j r_j / sqrt(w_j d_j)` at `rho = 1`, where the group at the cut
    is kept in part if it does not fit.

    Groups that tie share one u: no strength parts them. Where all groups that are not zero fit the budget, the factors
    are `1 / (1 + rho_j)`, or 1 de-biased. At budget 0 they are 0. Scaling all magnitudes changes nothing. Takes time
    linear in the number of groups.

    Args:
        magnitudes: l2 norms of the groups; groups of one weight are its absolute values. As in `group_envelope`.
        budget: the level k >= 0, in units of cost.
        strength: the penalty's coefficient times the step size, >= 0 and finite; dimensionless. De-biased, at most
            `h_j / w_j` for every group.
        costs: as in `group_envelope`; groups of cost 0 are whole in any case.
        weights: as in `group_envelope`; groups of weight 0 have factor 1.
        metric: h_j > 0, the squared distance's weight of each group (the preconditioner, such as Adam's
            `sqrt(v) + eps` averaged over the group), given as the costs are. All 1 by default. For groups of one weight
            this is the preconditioner itself.
        debias: take the de-biased map.

    Returns:
        Factors in [0, 1], shaped as the magnitudes and of their dtype (float32 for half precision). Groups that go have
        factor exactly 0. What a group of norm 0 is given has no effect: 0, or the factor of a whole group.

    Raises:
        ValueError: for magnitudes, costs, weights or a metric that are NaN, infinite or out of range, or that do not
            match; for a negative budget, or a strength that is out of range.
    """
    tensors = as_list(magnitudes)
    shaped = None
    if few_on_one(tensors) or (len(tensors) > 1 and on_one(tensors)):
        # What is wrong with them is told below, where they have their own places.
        with suppress(ValueError):
            shaped = _in_a_row(tensors, budget, strength, (costs, weights, metric), debias)
    if shaped is None:
        shaped = _apart(magnitudes, budget, strength, (costs, weights, metric), debias)
    return shaped[0] if isinstance(magnitudes, Tensor) else shaped


@torch.no_grad()
def prox_of_values(
    values: Sequence[Values],
    budget: float,
    strength: float,
    costs: Sequence[Tensor],
    weights: Sequence[Tensor] | None = None,
    metric: Sequence[Tensor] | None = None,
    *,
    debias: bool = False,
) -> Sequence[Tensor | Values | None]:
    """`prox_group_envelope` of magnitudes that are computed where they are looked at; None where all factors are 1.

    Where costs and metric are numbers a layer, of many magnitudes on the CPU, nothing as large as these is made.
    """
    near = all(v.device.type == "cpu" for v in values) and sum(v.numel() for v in values) >= WORTH
    numbers = [_number(c) for c in costs], [1.0] * len(costs) if metric is None else [_number(h) for h in metric]
    price, heights = ([n for n in found if n is not None and n > 0.0] for found in numbers)
    rho = [strength / h for h in heights]
    plain = near and weights is None and len(price) == len(rho) == len(values)
    if plain and budget > 0.0 and all(0.0 < r < (1.0 + _SLACK if debias else math.inf) for r in rho):
        return factors_of_values(values, budget, [min(r, 1.0) if debias else r for r in rho], price, debias=debias)
    return prox_group_envelope([v.tensor() for v in values], budget, strength, costs, weights, metric, debias=debias)


def _number(values: Tensor) -> float | None:
    return float(values) if values.numel() == 1 and values.device.type == "cpu" else None


def _in_a_row(tensors: Sequence[Tensor], budget: float, strength: float, beside: _Beside, debias: bool) -> list[Tensor]:
    """The factors, computed as those of one tensor; of few groups on the CPU."""
    device = tensors[0].device
    near = torch.device("cpu") if few_on_one(tensors) else device

    def placed(values: PerTensor) -> Tensor | float | None:
        row = beside_row(values, tensors)
        return row.to(near) if isinstance(row, Tensor) else row

    row = in_a_row(tensors).to(near)
    costs, weights, metric = beside
    (factors,) = _apart(row, budget, strength, (placed(costs), placed(weights), placed(metric)), debias)
    return [_as_of(part, m) for part, m in zip(parted(factors.to(device, non_blocking=True), tensors), tensors)]


def _apart(
    magnitudes: Tensor | Sequence[Tensor], budget: float, strength: float, beside: _Beside, debias: bool
) -> list[Tensor]:
    costs, weights, metric = beside
    groups = Groups.of(magnitudes, budget, costs, weights)
    metrics = per_tensor(metric, magnitudes, "metric", positive=True)
    _check_strength(strength, groups, metrics, debias)
    factors = _factors(groups, [strength * w / h for w, h in zip(groups.weights, metrics)], debias)
    return [_as_of(f, m) for f, m in zip(factors, groups.magnitudes)]


def _as_of(factors: Tensor, magnitudes: Tensor) -> Tensor:
    return factors.to(torch.float64 if magnitudes.dtype == torch.float64 else torch.float32)


def _factors(groups: Groups, offsets: Sequence[Tensor], debias: bool) -> list[Tensor]:
    if groups.budget > 0 and not any(bool((rho > 0).any()) for rho in offsets):
        return [torch.ones(m.shape, dtype=torch.float64, device=m.device) for m in groups.magnitudes]
    widths = [(1.0 - rho).clamp_min(_STEP) if debias else torch.ones_like(rho) for rho in offsets]
    shares = groups.fractions(offsets, widths)
    return [_factor(u, rho, debias).masked_fill(w == 0, 1.0) for u, rho, w in zip(shares, offsets, groups.weights)]


def _factor(u: Tensor, rho: Tensor, debias: bool) -> Tensor:
    total = torch.addcmul(u, rho, 1.0 - u) if debias else u + rho
    return u.div_(total.masked_fill_(total == 0, 1.0))


def _check_strength(strength: float, groups: Groups, metrics: Sequence[Tensor], debias: bool) -> None:
    if not 0.0 <= strength < math.inf:
        raise ValueError(f"strength={strength} must be finite and not negative")
    steepest = max((float((w / h).max()) for w, h in zip(groups.weights, metrics) if w.numel()), default=0.0)
    if not strength * steepest < math.inf:
        raise ValueError(f"strength={strength} overflows: strength * weights / metric reaches infinity")
    if debias and strength * steepest > 1.0 + _SLACK:
        raise ValueError(
            f"strength={strength} is too large to de-bias: strength * weights / metric must not exceed 1, "
            f"so the strength can be at most {1.0 / steepest:g} here"
        )
