"""Grouped Sparse Projection: bring a set of vectors to an average Hoyer sparsity.

Source: R. Ohib, N. Gillis, N. Dalmasso, S. Shah, V. K. Potluru, S. Plis, "Explicit group sparse projection with
applications to deep learning and NMF", TMLR 2022. With `a = |x|` and `beta = 1 / (sqrt(n) - 1)` per vector, it solves

    maximise  sum_i a_i'u_i   subject to  |u_i|_2 = 1,  u_i >= 0,  sum_i beta_i |u_i|_1 <= sum_i beta_i + r (1 - s)

and answers `sign(x_i) (a_i'u_i) u_i`. One multiplier mu decides all: `u_i` is parallel to `(a_i - mu beta_i)_+`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from setpoint.functional.compiled import new_like
from setpoint.functional.gsp_fast import WarmStart, project_fast, solved_fast
from setpoint.functional.gsp_vectors import TIE, Vectors
from setpoint.functional.root import monotone_root

# Accepted error in the average sparsity.
_TOLERANCE = 1e-10


@overload
def project_gsp(
    vectors: Tensor,
    sparsity: float,
    weights: Tensor | None = None,
    *,
    scale_invariant: bool = False,
    warm: WarmStart | None = None,
    out: Tensor | None = None,
) -> Tensor: ...
@overload
def project_gsp(
    vectors: Sequence[Tensor],
    sparsity: float,
    weights: Sequence[Tensor] | None = None,
    *,
    scale_invariant: bool = False,
    warm: WarmStart | None = None,
    out: Sequence[Tensor] | None = None,
) -> list[Tensor]: ...
@torch.no_grad()
def project_gsp(
    vectors: Tensor | Sequence[Tensor],
    sparsity: float,
    weights: Tensor | Sequence[Tensor] | None = None,
    *,
    scale_invariant: bool = False,
    warm: WarmStart | None = None,
    out: Tensor | Sequence[Tensor] | None = None,
) -> Tensor | list[Tensor]:
    """Project a set of vectors to an average Hoyer sparsity of at least `sparsity`.

    The result has exactly that average (to 1e-10, before it is rounded to the input's dtype; to 1e-9 where compiled
    kernels read float32), unless the input has more already: then it is returned as it is. Where several entries of a
    vector tie at its maximum, so that no threshold gives the average asked, the tied entries are filled unequally (the
    first gets most), which is an exact optimum too. With weights, some averages can only be exceeded: the next higher
    one is taken.

    Vectors of zeros count as sparsity 1 and stay zero. Vectors of fewer than two entries have no Hoyer sparsity: they
    are left out of the average and copied. Signs and the order of magnitudes are kept.

    Args:
        vectors: a matrix, whose rows are the vectors; a 1-D tensor, which is one vector; or a sequence of these, all
            projected as one set. Any real floating dtype and device; sums are float64.
        sparsity: average to reach, in [0, 1].
        weights: same shape or shapes as `vectors`, non-negative: the weighted Hoyer measure, in which entries of
            large weight are driven out first.
        scale_invariant: project the vectors at unit length and give them their scale back. Without it (the paper's
            form) vectors of small norm take most of the sparsity, down to a single entry each.
        warm: where to begin, and where to leave what was found.
        out: tensors of the same shapes and dtypes to write to. The vectors themselves are possible, and the fastest:
            nothing new is allocated.

    Returns:
        `out`, or new tensors of the same shapes, dtypes and structure.

    Raises:
        ValueError: for a sparsity outside [0, 1], NaN or infinite entries, negative weights, or shapes that differ.
    """
    _check_sparsity(sparsity)
    alone = isinstance(vectors, Tensor)
    tensors: list[Tensor] = [vectors] if isinstance(vectors, Tensor) else list(vectors)
    spread = [weights] if isinstance(weights, Tensor) else weights
    if spread is not None and len(spread) != len(tensors):
        raise ValueError(f"{len(spread)} tensors of weights were given for {len(tensors)} tensors of vectors")
    matrices = [_as_matrix(tensor, i) for i, tensor in enumerate(tensors)]
    results = _results(tensors, out)
    done = spread is None and project_fast(matrices, sparsity, scale_invariant, warm, results)
    if not done:
        rows = [_magnitudes(matrix, i) for i, matrix in enumerate(matrices)]
        weighting = None if spread is None else [_weight_rows(w, t, i) for i, (w, t) in enumerate(zip(spread, tensors))]
        for i, factors in enumerate(_factors(rows, sparsity, weighting, scale_invariant, warm)):
            results[i].copy_(tensors[i] if factors is None else _scaled(tensors[i], factors))
    return results[0] if alone else results


def _results(tensors: Sequence[Tensor], out: Tensor | Sequence[Tensor] | None) -> list[Tensor]:
    if out is None:
        return [new_like(tensor) for tensor in tensors]
    results = [out] if isinstance(out, Tensor) else list(out)
    asked, given = ([(tuple(t.shape), t.dtype, t.device) for t in ts] for ts in (tensors, results))
    if asked != given:
        raise ValueError(f"out has tensors of {given}; the vectors are of {asked}")
    return results


def gsp_factors(
    rows: Sequence[Tensor],
    sparsity: float,
    weights: Sequence[Tensor] | None = None,
    *,
    scale_invariant: bool = False,
    warm: WarmStart | None = None,
) -> list[Tensor | None]:
    """What each entry is multiplied by in the projection of `project_gsp`.

    Args:
        rows: matrices whose rows are the vectors' magnitudes, non-negative and finite.
        sparsity, weights, scale_invariant, warm: as in `project_gsp`.

    Returns:
        A matrix of factors for each matrix, in float64 or the matrix's own dtype; None where its rows stay as they are.
    """
    if weights is None and (found := solved_fast(rows, sparsity, scale_invariant, warm)) is not None:
        written = found.write(relative=True)
        return [written.get(i) for i in range(len(rows))]
    return _factors(rows, sparsity, weights, scale_invariant, warm)


def _factors(
    rows: Sequence[Tensor],
    sparsity: float,
    weights: Sequence[Tensor] | None,
    scale_invariant: bool,
    warm: WarmStart | None,
) -> list[Tensor | None]:
    """What each entry is multiplied by, in eager float64: for all that the kernels do not take, and their reference."""
    members = [Vectors.of(r, None if weights is None else weights[i], scale_invariant) for i, r in enumerate(rows)]
    active = [m for m in members if m is not None]
    count = sum(m.count for m in active)
    level = count * (1.0 - sparsity)
    if count == 0 or _excess(active, 0.0)[0] <= level + _TOLERANCE * count:
        return [None] * len(members)
    if sparsity == 1.0:
        return [None if m is None else m.peak_factors() for m in members]
    upper = _upper_end(active, level)
    start = _guess(active) if warm is None or warm.multiplier is None else warm.multiplier
    root = monotone_root(
        lambda mu: _excess(active, mu), 0.0, upper, level=level, tolerance=_TOLERANCE * count, start=start
    )
    if warm is not None:
        warm.multiplier = root.x
    if root.converged:
        return [None if m is None else m.factors(root.x) for m in members]
    return _filled(members, root.lower, root.upper, level)


def mean_hoyer(rows: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> float:
    """Average Hoyer sparsity of all rows of at least two entries; 1 if there is none."""
    members = [Vectors.of(r, None if weights is None else weights[i], False) for i, r in enumerate(rows)]
    active = [m for m in members if m is not None]
    count = sum(m.count for m in active)
    return 1.0 - _excess(active, 0.0)[0] / count if count else 1.0


def _excess(active: Sequence[Vectors], mu: float) -> tuple[float, float]:
    """Sum over all vectors of `1 - sparsity`, and its derivative in mu."""
    parts = [m.excess(mu) for m in active]
    return sum(float(e.sum()) for e, _ in parts), sum(float(s.sum()) for _, s in parts)


def _guess(active: Sequence[Vectors]) -> float:
    """First point of the search: the middle of the thresholds' range, where Newton's steps are of use."""
    scale = max(float((m.entries.mean(1, keepdim=True) / m.threshold.clamp_min(1e-300)).mean()) for m in active)
    return 0.5 * scale


def _upper_end(active: Sequence[Vectors], level: float) -> float:
    peaks = torch.cat([m.peaks().flatten() for m in active])
    upper = float(peaks[peaks.isfinite()].max()) * (1.0 + TIE)
    # Beyond the last peak the weighted problem still drifts towards entries of less weight.
    for _ in range(1000):
        if _excess(active, upper)[0] <= level:
            break
        upper *= 2.0
    return upper


def _filled(members: Sequence[Vectors | None], lower: float, upper: float, level: float) -> list[Tensor | None]:
    """The optimum inside a jump: tied entries share one fraction of the way from all of them to the first.

    Where the jump is not one of ties (weighted vectors past their last peak), the sparser side is taken.
    """
    ties = [None if m is None else m.tied(lower, upper) for m in members]
    others, room = 0.0, 0.0
    for m, tie in zip(members, ties):
        if m is None or tie is None:
            continue
        which, entries = tie
        _, _, most, least = m.arc(entries)
        base = least - (1.0 if m.weights is None else m.weights.amin(1, keepdim=True))
        others += float(torch.where(which, m.beta * base, m.excess(upper)[0]).sum())
        room += float((m.beta * (most - least))[which].sum())
    if room <= 0.0:
        return [None if m is None else m.factors(upper) for m in members]
    theta = min(max((level - others) / room, 0.0), 1.0)
    out: list[Tensor | None] = []
    for m, tie in zip(members, ties):
        if m is None or tie is None:
            out.append(None)
            continue
        which, entries = tie
        out.append(torch.where(which, m.arc_factors(entries, theta), m.factors(upper)))
    return out


def _check_sparsity(sparsity: float) -> None:
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity={sparsity} is not a Hoyer sparsity: it must lie in [0, 1]")


def _as_matrix(tensor: Tensor, position: int) -> Tensor:
    if tensor.ndim not in (1, 2):
        raise ValueError(
            f"tensor {position} has shape {tuple(tensor.shape)}: give a matrix of row vectors or a single vector "
            "(for a convolution weight, w.flatten(1) makes a vector of each filter, w.flatten() one of the layer)"
        )
    if not tensor.is_floating_point():
        raise ValueError(f"tensor {position} has dtype {tensor.dtype}: a floating dtype is needed")
    return tensor.reshape(1, -1) if tensor.ndim == 1 else tensor


def _magnitudes(matrix: Tensor, position: int) -> Tensor:
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"tensor {position} holds NaN or infinite entries")
    return matrix.abs()


def _weight_rows(weights: Tensor, tensor: Tensor, position: int) -> Tensor:
    if weights.shape != tensor.shape:
        raise ValueError(
            f"the weights of tensor {position} have shape {tuple(weights.shape)}, its vectors {tuple(tensor.shape)}"
        )
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise ValueError(f"the weights of tensor {position} must be finite and not negative")
    return weights.reshape(1, -1) if weights.ndim == 1 else weights


def _scaled(tensor: Tensor, factors: Tensor) -> Tensor:
    return (tensor.to(torch.float64) * factors.reshape(tensor.shape)).to(tensor.dtype)
