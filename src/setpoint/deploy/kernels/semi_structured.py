"""A weight whose zeros follow the 2:4 pattern, for the sparse tensor cores of CUDA."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from setpoint.deploy.kernels.matrices import SparseMatrix
from setpoint.deploy.kernels.products import opaque, semi_structured_linear


class SemiStructuredMatrix(SparseMatrix):
    """At most two of four neighbours in a row are not zero (2:4), packed for the sparse tensor cores of CUDA.

    Args:
        weight: of shape (rows, columns), on CUDA.

    Raises:
        RuntimeError: from torch, for shapes and devices that have no kernel.
    """

    packed: Tensor
    meta: Tensor | None
    _dtypes = (torch.float16, torch.bfloat16)

    def __init__(self, weight: Tensor) -> None:
        super().__init__(*weight.shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that this is a prototype
            tensor: Any = torch.sparse.to_sparse_semi_structured(weight.detach().contiguous())
        self.cutlass = isinstance(tensor, torch.sparse.SparseSemiStructuredTensorCUTLASS)
        self.register_buffer("packed", tensor.packed)
        self.register_buffer("meta", tensor.meta)

    @classmethod
    def refusal(cls, weight: Tensor) -> str | None:
        """See the base class."""
        if weight.device.type != "cuda":
            return f"2:4 kernels run on cuda, not {weight.device.type}"
        if (reason := super().refusal(weight)) is not None:
            return reason
        if (full := groups_above_two(weight)) != 0:
            return f"{full:,} groups of four have more than two entries that are not zero"
        return None

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.packed.dtype

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """See the base class."""
        run = torch.ops.setpoint.semi_structured_linear if opaque(input) else semi_structured_linear
        out: Tensor = run(input, self.packed, self.meta, bias, self.rows, self.cutlass)
        return out

    def pointwise(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """Through `linear`, with the channels last."""
        n, columns, positions = input.shape
        flat = self.linear(input.transpose(1, 2).reshape(n * positions, columns), bias)
        return flat.view(n, positions, self.rows).transpose(1, 2).contiguous()


def groups_above_two(weight: Tensor) -> int:
    """How many groups of four neighbours in a row break the 2:4 pattern."""
    padded = F.pad(weight.ne(0), (0, -weight.shape[1] % 4))
    return int((padded.view(len(weight), -1, 4).sum(2) > 2).sum())
