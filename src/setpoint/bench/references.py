"""What projections are measured against: one pass over the memory, and torch's own ways to find a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from setpoint.bench.inputs import Weights
from setpoint.bench.work import Work

PASS, SORT = "one pass", "torch.sort"


def one_pass(tensors: Sequence[Tensor]) -> float | Tensor:
    """Read every entry once: `torch.dot(w, w)` summed over a list of vectors."""
    return sum(torch.dot(w, w) for w in tensors)


def pass_over(weights: Weights) -> Work:
    """The unit that times are given in."""
    return Work(PASS, partial(one_pass, weights.flat))


def thresholds(weights: Weights, sparsity: float, *, sort: bool = True) -> list[Work]:
    """The k-th magnitude of all weights by torch's operators, on magnitudes brought together beforehand."""
    magnitudes = torch.cat([w.abs() for w in weights.flat])
    kept = max(1, round((1.0 - sparsity) * len(magnitudes)))
    note = "of magnitudes put into one tensor beforehand"
    works = [
        Work("torch.kthvalue", partial(torch.kthvalue, magnitudes, len(magnitudes) - kept + 1), PASS, note=note),
        Work("torch.topk", partial(torch.topk, magnitudes, kept), PASS, note=note),
    ]
    return [Work(SORT, partial(torch.sort, magnitudes), PASS, note=note), *works] if sort else works
