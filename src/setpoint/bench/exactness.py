"""How far answers are from what was asked: independent of how they were found, and in double precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def off_hoyer(vectors: Sequence[Tensor], sparsity: float) -> dict[str, float]:
    """How far the average Hoyer sparsity of vectors, or of the rows of matrices, is from what was asked.

    Vectors of fewer than two entries have none and do not count.
    """
    total, count = 0.0, 0
    for tensor in vectors:
        rows = tensor if tensor.ndim == 2 else tensor.view(1, -1)
        if rows.shape[1] < 2:
            continue
        root = rows.shape[1] ** 0.5
        l1, l2 = (torch.linalg.vector_norm(rows, order, dim=1, dtype=torch.float64) for order in (1, 2))
        ratio = torch.where(l2 == 0, 1.0, l1 / l2.masked_fill(l2 == 0, 1.0))
        total += float(((root - ratio) / (root - 1.0)).sum())
        count += rows.shape[0]
    return {"off": abs(total / count - sparsity) if count else 0.0}


def off_count(kept: Sequence[Tensor], budget: int) -> dict[str, float]:
    """By how many entries more than the budget are kept; below 0 if fewer are."""
    return {"off": sum(int(torch.count_nonzero(k)) for k in kept) - budget}


def off_envelope(factors: Tensor, budget: float, strength: float, *, debias: bool) -> dict[str, float]:
    """How far what the envelope's map counts of the groups is from the budget, as a fraction of it.

    The map's factor is `u / (u + rho)`, or de-biased `u / (u + rho (1 - u))`; the u of all groups sum to the budget.
    """
    f = factors.double()
    u = f * strength / (1.0 - f + f * strength) if debias else f * strength / (1.0 - f)
    return {"off": abs(float(u.sum()) / budget - 1.0)}
