"""The forms that a weight may be held in, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from setpoint.deploy.kernels.matrices import CompressedMatrix, SparseMatrix
from setpoint.deploy.kernels.narrow import NarrowMatrix
from setpoint.deploy.kernels.semi_structured import SemiStructuredMatrix


@dataclass(frozen=True)
class Kernel:
    """A form that a weight may be held in.

    Attributes:
        build: of a weight (rows, columns), the matrix.
        refusal: of a weight, why it does not suit; None where it is worth timing.
    """

    build: Callable[[Tensor], SparseMatrix]
    refusal: Callable[[Tensor], str | None]


KERNELS: Mapping[str, Kernel] = {
    "csr": Kernel(CompressedMatrix, CompressedMatrix.refusal),
    **{
        f"bsr{b}": Kernel(partial(CompressedMatrix, block=b), partial(CompressedMatrix.refusal, block=b))
        for b in (4, 8, 16, 32)
    },
    "narrow": Kernel(NarrowMatrix, NarrowMatrix.refusal),
    "2:4": Kernel(SemiStructuredMatrix, SemiStructuredMatrix.refusal),
}
