"""The projections written out plainly, to check the library's against and to time them beside: few lines, no tricks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def plain_gsp(vectors: Sequence[Tensor], sparsity: float, tolerance: float = 1e-6) -> list[Tensor]:
    """Grouped sparse projection by Newton's method on mu, by bisection where that leaves the bracket.

    In the vectors' dtype with sums in double precision; for vectors without ties at their peaks.
    """
    if any(v.shape[-1] < 2 for v in vectors):  # they have no Hoyer sparsity
        long = iter(plain_gsp([v for v in vectors if v.shape[-1] > 1], sparsity, tolerance))
        return [next(long) if v.shape[-1] > 1 else v.clone() for v in vectors]
    rows = [v.abs().reshape(-1, v.shape[-1]) for v in vectors]
    betas = [1.0 / (math.sqrt(r.shape[1]) - 1.0) for r in rows]
    count = sum(len(r) for r in rows)
    level = count * (1.0 - sparsity)
    if _excess(rows, betas, 0.0)[0] <= level:
        return [v.clone() for v in vectors]
    lower, upper = 0.0, max(float(r.max()) / b for r, b in zip(rows, betas))
    mu = 0.5 * min(float(r.mean()) / b for r, b in zip(rows, betas))
    for _ in range(100):
        value, slope = _excess(rows, betas, mu)
        if abs(value - level) <= tolerance * count:
            break
        lower, upper = (mu, upper) if value > level else (lower, mu)
        mu = mu - (value - level) / slope if slope < 0.0 else lower
        if not lower < mu < upper:
            mu = 0.5 * (lower + upper)
    return [_mapped(v, r, mu * b) for v, r, b in zip(vectors, rows, betas)]


def _excess(rows: Sequence[Tensor], betas: Sequence[float], mu: float) -> tuple[float, float]:
    """Sum of `beta (|v|_1 / |v|_2 - 1)` of what mu leaves of each vector, and its derivative."""
    value, slope = 0.0, 0.0
    for row, beta in zip(rows, betas):
        v = (row - mu * beta).relu()
        l1, square = v.sum(1, dtype=torch.float64), v.square().sum(1, dtype=torch.float64)
        alone = square == 0
        l2 = square.masked_fill(alone, 1.0).sqrt()
        count = torch.count_nonzero(v, dim=1)
        value += float((beta * (l1 / l2 - 1.0)).masked_fill(alone, 0.0).sum())
        slope -= float((beta * beta * (count - (l1 / l2).square()) / l2).masked_fill(alone, 0.0).sum())
    return value, slope


def _mapped(vector: Tensor, rows: Tensor, threshold: float) -> Tensor:
    """What is over the threshold, at the best scale; of a vector that is below it throughout, its largest entry."""
    v = (rows - threshold).relu()
    square = v.square().sum(1, keepdim=True, dtype=torch.float64)
    gain = (rows * v).sum(1, keepdim=True, dtype=torch.float64) / square.masked_fill(square == 0, 1.0)
    alone = torch.zeros_like(rows).scatter_(1, rows.argmax(1, keepdim=True), 1.0) * rows
    projected = torch.where(square == 0, alone, v * gain.to(v.dtype))
    return projected.view(vector.shape).copysign(vector)


def plain_budget(magnitudes: Sequence[Tensor], budget: float) -> list[Tensor]:
    """The largest magnitudes by sorting all of them; ties go to the earlier tensor and the lower index."""
    order = torch.cat([m.flatten() for m in magnitudes]).argsort(stable=True, descending=True)
    kept = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    kept[order[: int(budget)]] = True
    return [k.view(m.shape) for k, m in zip(kept.split([m.numel() for m in magnitudes]), magnitudes)]


def plain_envelope(norms: Tensor, budget: float, strength: float, debias: bool) -> Tensor:
    """Factors of the group sparse envelope's proximal map, by bisection on alpha in double precision.

    De-biased for strengths below 1, at which it would be a step.
    """
    exact = norms.double()
    width = 1.0 - strength if debias else 1.0

    def fractions(alpha: float) -> Tensor:
        return ((alpha * exact - strength) / width).clamp(0.0, 1.0)

    lower, upper = 0.0, (strength + width) / float(exact[exact > 0].min())
    if float(fractions(upper).sum()) <= budget:
        lower = upper
    for _ in range(200):
        middle = 0.5 * (lower + upper)
        if not lower < middle < upper:
            break
        lower, upper = (middle, upper) if float(fractions(middle).sum()) < budget else (lower, middle)
    u = fractions(upper)
    total = u + strength * (1.0 - u) if debias else u + strength
    return (u / total.masked_fill(total == 0, 1.0)).to(norms.dtype)
