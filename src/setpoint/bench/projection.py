"""How long projections take, in passes over the weights, and how exactly they reach what was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from setpoint.bench import peers
from setpoint.bench.exactness import off_count, off_hoyer
from setpoint.bench.inputs import Weights
from setpoint.bench.references import PASS, pass_over, thresholds
from setpoint.bench.work import Pace, Row, Work, in_turns
from setpoint.functional import project_budget, project_gsp
from setpoint.functional.gsp_fast import WarmStart
from setpoint.units import Layout, Partition, partition

SPARSITY = 0.9

# What is called with vectors and a sparsity, and with magnitudes and a budget, beside our own: for comparison.
Plain = Callable[[Sequence[Tensor], float], Any]

# The forms of `project_gsp` that are timed: what each is called, and with which options.
_GSP: Mapping[str, Mapping[str, Any]] = {
    "project_gsp": {},
    "project_gsp at unit length": {"scale_invariant": True},
}
# By how much weights differ from those of the step before, relative to their size, where a projection starts warm.
_MOVED = 3e-3


def projection(
    weights: Weights,
    pace: Pace,
    *,
    sparsity: float = SPARSITY,
    sort: bool = True,
    plain_gsp: Plain | None = None,
    plain_budget: Plain | None = None,
) -> list[Row]:
    """Time `project_gsp`, `project_budget` and the magnitudes of units on a set of weights, beside references.

    Args:
        weights: of which set; where its vectors are whole tensors, units of several weights are measured as well.
        pace: how often.
        sparsity: average Hoyer sparsity to project to, and fraction of the weights that go.
        sort: whether `torch.sort`, the slowest by far, is timed as well.
        plain_gsp, plain_budget: other implementations to time in the same turns.

    Returns:
        Rows against one pass. The figure `off` is, of a projection, how far the average Hoyer sparsity is from what was
        asked; of a budget, the number of weights kept beyond it.
    """
    works = [
        pass_over(weights),
        *_gsp(weights, sparsity, plain_gsp),
        *_budget(weights, sparsity, plain_budget),
        *_magnitudes(weights),
        *thresholds(weights, sparsity, sort=sort),
        *peers.pruning(weights, sparsity),
        peers.lasso(weights),
    ]
    return in_turns(weights.name, works, weights.device, pace)


def multiplier(pace: Pace) -> list[Row]:
    """Time the step of a Lagrange multiplier beside cooper's."""
    return in_turns("a multiplier of one constraint", peers.multipliers(), torch.device("cpu"), pace)


def _gsp(weights: Weights, sparsity: float, plain: Plain | None) -> list[Work]:
    check = partial(_off_hoyer, sparsity)
    works, into = [], [torch.empty_like(v) for v in weights.vectors]
    for name, options in _GSP.items():
        project = partial(project_gsp, weights.vectors, sparsity, **options)
        works += [
            Work(name, partial(project, out=into), PASS, check),
            Work(f"{name}, warm", partial(_from, _before(weights, sparsity, options), project, into), PASS, check),
            Work(f"{name}, into new memory", project, PASS, check),
        ]
    if plain is not None:
        works.append(Work("plain project_gsp", partial(plain, weights.vectors, sparsity), PASS, check))
    return works


def _before(weights: Weights, sparsity: float, options: Mapping[str, Any]) -> float | None:
    """The multiplier of weights that lie near to these."""
    generator = torch.Generator(weights.device).manual_seed(2)
    moved = [
        v
        + _MOVED * v.square().mean().sqrt() * torch.randn(v.shape, generator=generator, device=v.device, dtype=v.dtype)
        for v in weights.vectors
    ]
    warm = WarmStart()
    project_gsp(moved, sparsity, warm=warm, **options)
    return warm.multiplier


def _from(multiplier: float | None, project: Callable[..., Any], into: Sequence[Tensor]) -> Any:
    return project(warm=WarmStart(multiplier), out=into)


def _budget(weights: Weights, sparsity: float, plain: Plain | None) -> list[Work]:
    magnitudes, budget = [w.abs() for w in weights.flat], round((1.0 - sparsity) * weights.count)
    check = partial(_off_count, budget)
    works = [Work("project_budget", partial(project_budget, magnitudes, budget), PASS, check)]
    if plain is not None:
        works.append(Work("plain project_budget", partial(plain, magnitudes, budget), PASS, check))
    return works


def _magnitudes(weights: Weights) -> list[Work]:
    works = []
    for unit in _units(weights):
        layouts = [Layout(tuple(t.shape), convolution=t.ndim > 2) for t in weights.tensors]
        # A layer without such units, as a linear one has no kernels, is taken by its rows.
        parts = [partition(unit, layout) or partition("row", layout) for layout in layouts]
        found = [(units, tensor) for units, tensor in zip(parts, weights.tensors) if units is not None]
        works.append(Work(f"magnitudes of every {unit}", partial(_take, found), PASS))
    return works


def _units(weights: Weights) -> tuple[str, ...]:
    """The kinds of units that the shapes of the weights have."""
    dimensions = max(t.ndim for t in weights.tensors)
    return ("weight", "row", "column", "kernel")[: {1: 1, 2: 3}.get(dimensions, 4)]


def _take(parts: Sequence[tuple[Partition, Tensor]]) -> list[Tensor]:
    return [units.magnitudes(tensor) for units, tensor in parts]


def _off_hoyer(sparsity: float, vectors: Sequence[Tensor]) -> dict[str, float]:
    return off_hoyer(vectors, sparsity)


def _off_count(budget: int, kept: Sequence[Tensor]) -> dict[str, float]:
    return off_count(kept, budget)
