"""Hoyer's measure of sparsity and the penalties built on the same ratio of norms.

Sources: P. O. Hoyer, "Non-negative matrix factorization with sparseness constraints", JMLR 5 (2004), section 3.1;
H. Yang, W. Wen, H. Li, "DeepHoyer", ICLR 2020, equations 2 and 5 (Hoyer-Square and Group-HS).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Dim = int | Sequence[int] | None


def hoyer(vectors: Tensor, dim: Dim = None, weights: Tensor | None = None) -> Tensor:
    """Hoyer sparsity of each vector: 0 where all entries are equal in size, 1 where one entry is not zero.

    `(sqrt(n) - |x|_1 / |x|_2) / (sqrt(n) - 1)`; with weights `(|w|_2 - w'|x| / |x|_2) / (|w|_2 - min w)`.
    Invariant to the scale of each vector. A vector of zeros counts as 1.

    Args:
        vectors: any shape, real.
        dim: the dimension or dimensions that run along a vector; all of them by default.
        weights: non-negative, broadcastable to `vectors`; none means all ones.

    Returns:
        One value a vector, in [0, 1]: the shape of `vectors` without `dim`.

    Raises:
        ValueError: if the vectors have fewer than two entries, for which the measure is undefined.
    """
    dims = _dims(vectors, dim)
    length = math.prod(vectors.shape[d] for d in dims)
    if length < 2:
        raise ValueError(f"Hoyer sparsity needs vectors of at least 2 entries, not {length} (shape {_shape(vectors)})")
    scaled = _unit_peak(vectors, dims)
    norm: Tensor = torch.linalg.vector_norm(scaled, dim=dims)
    zero = norm == 0
    if weights is None:
        ratio = scaled.abs().sum(dims) / norm.masked_fill(zero, 1.0)
        root = math.sqrt(length)
        return ((root - ratio) / (root - 1.0)).masked_fill(zero, 1.0)
    spread = weights.to(scaled.dtype).expand_as(scaled)
    ratio = (spread * scaled.abs()).sum(dims) / norm.masked_fill(zero, 1.0)
    top: Tensor = torch.linalg.vector_norm(spread, dim=dims)
    bottom = spread.amin(dims)
    return ((top - ratio) / (top - bottom)).masked_fill(zero, 1.0)


def hoyer_square(tensor: Tensor, dim: Dim = None) -> Tensor:
    """Hoyer-Square `(sum |x|)^2 / sum x^2`: between 1 and the number of entries, 0 for a tensor of zeros.

    Differentiable, scale invariant, and finite everywhere: a tensor of zeros has value and gradient 0.

    Args:
        tensor: any shape, real.
        dim: what the sums run over; everything by default.

    Returns:
        The shape of `tensor` without `dim`.
    """
    dims = _dims(tensor, dim)
    scaled = _unit_peak(tensor, dims)
    square = scaled.square().sum(dims)
    zero = square == 0
    return (scaled.abs().sum(dims).square() / square.masked_fill(zero, 1.0)).masked_fill(zero, 0.0)


def group_hoyer_square(tensor: Tensor, dim: Dim) -> Tensor:
    """Group-HS: Hoyer-Square of the groups' l2 norms, `(sum_g |x_g|_2)^2 / sum_g |x_g|_2^2`, a scalar.

    Args:
        tensor: any shape, real.
        dim: the dimensions *inside* a group; what remains counts the groups. For a convolution weight
            `(out, in, h, w)`, `(1, 2, 3)` makes a group of each filter and `(0, 2, 3)` one of each input channel.
    """
    dims = _dims(tensor, dim)
    return hoyer_square(torch.linalg.vector_norm(_unit_peak(tensor, tuple(range(tensor.ndim))), dim=dims))


def _dims(tensor: Tensor, dim: Dim) -> tuple[int, ...]:
    if dim is None:
        return tuple(range(tensor.ndim))
    return tuple(d % tensor.ndim for d in ((dim,) if isinstance(dim, int) else dim))


def _unit_peak(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Divide each vector by its largest size, in float32 or better: squares neither overflow nor vanish.

    The measures are scale invariant, so the divisor carries no gradient.
    """
    work = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    if work.numel() == 0 or not dims:
        return work
    peak = work.detach().abs().amax(dims, keepdim=True)
    return work / peak.masked_fill(peak == 0, 1.0)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
