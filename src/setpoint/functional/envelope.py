"""The group sparse envelope: the convex penalty that comes nearest to "at most so much cost is kept".

With the norms `r_j` of the groups, costs `d_j` and quadratic weights `w_j`, the envelope of level k is

    R(r) = 1/2 min { sum_j w_j r_j^2 / u_j  :  0 <= u_j <= 1,  sum_j d_j u_j <= k }      (0/0 = 0, r/0 = inf).

With equal costs d and k/d an integer it is the convex envelope (biconjugate) of `1/2 sum_j w_j r_j^2` on the points
whose support costs at most k; with other costs it is the linear relaxation of that envelope, a lower bound of it. For
`w = d = 1` it is half the squared k-support norm of the norms: from `1/2 (sum_j r_j)^2` at k = 1 to
`1/2 sum_j r_j^2` at k = m.

Sources: A. Beck, Y. Refael, "Sparse regularization via bidualization", 2022 (the sparse envelope); Y. Refael, I. Arbel,
W. Huleihel, arXiv 2212.12921 (the weighted group sparse envelope); A. Argyriou, R. Foygel, N. Srebro, "Sparse
prediction with the k-support norm", NeurIPS 2012. The closed forms were derived from the definition above.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from setpoint.functional.envelope_search import Ramps, crossing
from setpoint.functional.ragged import PerTensor, as_list, check_magnitudes, per_tensor

# Slack on sums of costs, relative to the budget: costs such as FLOPs are summed in double precision.
_SLACK = 1e-12


@overload
def group_envelope(
    magnitudes: Tensor,
    budget: float,
    costs: Tensor | float | None = None,
    weights: Tensor | float | None = None,
) -> Tensor: ...
@overload
def group_envelope(
    magnitudes: Sequence[Tensor],
    budget: float,
    costs: Sequence[Tensor | float] | None = None,
    weights: Sequence[Tensor | float] | None = None,
) -> Tensor: ...
def group_envelope(
    magnitudes: Tensor | Sequence[Tensor],
    budget: float,
    costs: PerTensor = None,
    weights: PerTensor = None,
) -> Tensor:
    """Value of the (weighted) group sparse envelope, in time linear in the number of groups.

    With `c_j = r_j sqrt(w_j / d_j)` there is one threshold tau with `sum_j d_j min(1, c_j / tau) = k`. Over the groups
    S with `c_j >= tau`, which cost D, and the others T,

        R = 1/2 [ sum_S w_j r_j^2 + (sum_T sqrt(w_j d_j) r_j)^2 / (k - D) ],

    and `1/2 sum_j w_j r_j^2` where all groups that are not zero fit the budget. The value minus that sum is zero
    exactly where they fit.

    Differentiable, twice almost everywhere: the gradient is `w_j r_j` on S and `tau sqrt(w_j d_j)` on T. At a norm of
    zero the subgradient 0 is answered, so that no gradient reaches the entries of a zero group.

    Args:
        magnitudes: the groups' l2 norms, non-negative and finite (of single weights, the absolute values); one tensor
            or a ragged sequence of tensors of any shape and device, which share the budget. Nothing large is
            concatenated or sorted; computed in float64.
        budget: the level k >= 0, in units of cost; it need not be an integer. At 0 the envelope is infinite wherever a
            group of positive cost and weight is not zero.
        costs: what keeping each group costs, non-negative: per tensor a number, or a tensor that broadcasts to its
            magnitudes. All 1 by default. A group of cost 0 is always whole; one that costs more than the budget counts
            in part, so leave it out where the budget is strict.
        weights: of each group in the quadratic, non-negative, given as the costs are. A group of weight 0 is not
            penalised and takes no part in the budget.

    Returns:
        A scalar of the magnitudes' dtype (float32 for half precision), on the first tensor's device.

    Raises:
        ValueError: for magnitudes, costs or weights that are negative, NaN or infinite, for ones that do not match the
            magnitudes, or for a budget that is negative or NaN.
    """
    groups = Groups.of(magnitudes, budget, costs, weights)
    whole = _whole_groups(groups)
    zero = torch.zeros((), dtype=torch.float64, device=groups.device)
    square, tail, room = zero, zero, zero
    for r, d, w, u in zip(groups.magnitudes, groups.costs, groups.weights, whole):
        exact = r.to(torch.float64)
        kept = u >= 1.0
        rest = ~kept & (r.detach() > 0) & (w > 0)
        square = square + (exact.square() * (kept * w)).sum().to(groups.device)
        tail = tail + (exact * (rest * (w * d).sqrt())).sum().to(groups.device)
        room = room + (u * (rest * d)).sum().to(groups.device)
    if groups.budget == 0.0 and bool(tail > 0):
        value = square + math.inf  # carries no gradient of what made it infinite
    else:
        value = 0.5 * (square + tail.square() / room.masked_fill(room == 0, 1.0))
    return value.to(groups.dtype)


@dataclass(frozen=True)
class Groups:
    """The checked problem: norms as they were given, costs and weights in float64, each a number or one a group."""

    magnitudes: list[Tensor]
    budget: float
    costs: list[Tensor]
    weights: list[Tensor]

    @classmethod
    def of(cls, magnitudes: Tensor | Sequence[Tensor], budget: float, costs: PerTensor, weights: PerTensor) -> Groups:
        """Check the arguments of the public functions."""
        if not budget >= 0:
            raise ValueError(f"budget={budget} must be a number >= 0")
        tensors = as_list(magnitudes)
        for position, tensor in enumerate(tensors):
            check_magnitudes(tensor, position)
        return cls(
            tensors,
            float(budget),
            per_tensor(costs, magnitudes, "costs"),
            per_tensor(weights, magnitudes, "weights"),
        )

    @property
    def device(self) -> torch.device:
        """Where the value goes."""
        return self.magnitudes[0].device if self.magnitudes else torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the value."""
        double = any(m.dtype == torch.float64 for m in self.magnitudes)
        return torch.float64 if double else torch.float32

    @torch.no_grad()
    def fractions(self, offsets: Sequence[Tensor], widths: Sequence[Tensor]) -> list[Tensor]:
        """How much of each group counts: `u_j = clip((alpha c_j - rho_j) / s_j, 0, 1)`, with the alpha of the budget.

        All ones where every group that is not zero fits. Groups of weight 0 are left at 0, and the norms are scaled to
        a peak of 1 beforehand: u depends on their ratios only.
        """
        ramps = [Ramps(c, o, s, d) for c, o, s, d in zip(self._scores(), offsets, widths, self.costs)]
        total = sum(r.total() for r in ramps)
        if total <= self.budget * (1.0 + _SLACK):
            return [torch.ones_like(r.score) for r in ramps]
        if self.budget == 0.0:
            shares = [torch.zeros_like(r.score) for r in ramps]
        else:
            found = crossing(ramps, self.budget, total)
            shares = [found.fractions(r) for r in ramps]
        return [u.masked_fill_(d == 0, 1.0) if bool((d == 0).any()) else u for u, d in zip(shares, self.costs)]

    def _scores(self) -> list[Tensor]:
        peak = max((float(m.max()) for m in self.magnitudes if m.numel()), default=0.0)
        scores = []
        for m, d, w in zip(self.magnitudes, self.costs, self.weights):
            rank = (w / d).sqrt().masked_fill(d == 0, 0.0)
            scores.append(m.to(torch.float64, copy=True).div_(peak or 1.0).mul_(rank))
        return scores


@torch.no_grad()
def _whole_groups(groups: Groups) -> list[Tensor]:
    """The minimising u: those of 1 are whole."""
    zeros = [torch.zeros((), dtype=torch.float64, device=m.device) for m in groups.magnitudes]
    return groups.fractions(zeros, [torch.ones_like(z) for z in zeros])
