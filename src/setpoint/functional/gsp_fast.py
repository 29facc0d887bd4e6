"""The faster ways to a grouped sparse projection, where they lead to it: compiled kernels, and a GPU left to itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from setpoint.functional.compiled import single, usable
from setpoint.functional.device import on_one

if TYPE_CHECKING:
    from setpoint.functional.device.gsp import DeviceVectors
    from setpoint.functional.gsp_large import LargeVectors


@dataclass
class WarmStart:
    """Where a projection begins to search: at the multiplier that the last one of nearly the same vectors found.

    Give the same one to every projection of a run; each reads it and leaves its own.

    Attributes:
        multiplier: the mu of the last projection.
    """

    multiplier: float | None = None


def project_fast(
    matrices: Sequence[Tensor],
    sparsity: float,
    scale_invariant: bool,
    warm: WarmStart | None,
    results: Sequence[Tensor],
) -> bool:
    """Write the projection by compiled kernels or on a GPU, where these apply."""
    large = solved_fast(matrices, sparsity, scale_invariant, warm)
    if large is None:
        return False
    fits = [r.is_contiguous() and r.dtype in (torch.float32, torch.float64) for r in results]
    into = [r.reshape(m.shape) if fit else None for r, m, fit in zip(results, matrices, fits)]
    written = large.write(relative=False, into=into)
    for i, (result, matrix) in enumerate(zip(results, matrices)):
        if into[i] is None or i not in written:
            result.copy_(written.get(i, matrix).reshape(result.shape))
    return True


def solved_fast(
    matrices: Sequence[Tensor], sparsity: float, scale_invariant: bool, warm: WarmStart | None
) -> LargeVectors | DeviceVectors | None:
    """The vectors for the kernels or on a GPU, with their multiplier; None where neither applies."""
    taking_part = {i: matrix for i, matrix in enumerate(matrices) if len(matrix) and matrix.shape[1] > 1}
    large = None if sparsity == 1.0 else _prepared(taking_part, scale_invariant)
    if large is None or not large.solve(sparsity, None if warm is None else warm.multiplier):
        return None
    if warm is not None and large.multiplier is not None:
        warm.multiplier = large.multiplier
    return large


def _prepared(matrices: Mapping[int, Tensor], scale_invariant: bool) -> LargeVectors | DeviceVectors | None:
    if on_one(list(matrices.values())):
        from setpoint.functional.device.gsp import DeviceVectors

        return DeviceVectors(matrices, scale_invariant)
    if not usable(list(matrices.values())):
        return None
    from setpoint.functional.gsp_large import LargeVectors

    large = LargeVectors({i: single(matrix).contiguous() for i, matrix in matrices.items()}, scale_invariant)
    return large if large.readable else None
