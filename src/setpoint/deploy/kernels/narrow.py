"""A weight without the rows and columns that are zero throughout."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from setpoint.deploy.kernels.matrices import SparseMatrix

# Fuller than this, it is not even timed.
_FULLEST = 0.95


class NarrowMatrix(SparseMatrix):
    """The dense matrix without the rows and columns that are zero throughout.

    Args:
        weight: of shape (rows, columns).
    """

    values: Tensor
    kept_rows: Tensor | None
    kept_columns: Tensor | None
    _dtypes = (*SparseMatrix._dtypes, torch.float16, torch.bfloat16)

    def __init__(self, weight: Tensor) -> None:
        super().__init__(*weight.shape)
        rows, columns = _occupied(weight)
        self.register_buffer("values", weight.detach()[rows][:, columns].contiguous())
        self.register_buffer("kept_rows", None if bool(rows.all()) else rows.nonzero().squeeze(1))
        self.register_buffer("kept_columns", None if bool(columns.all()) else columns.nonzero().squeeze(1))

    @classmethod
    def refusal(cls, weight: Tensor) -> str | None:
        """See the base class."""
        if (reason := super().refusal(weight)) is not None:
            return reason
        rows, columns = (int(kept.sum()) for kept in _occupied(weight))
        if rows * columns > _FULLEST * weight.numel():
            gone = len(weight) - rows, weight.shape[1] - columns
            return f"{gone[0]} of {len(weight)} rows and {gone[1]} of {weight.shape[1]} columns are zero, too few"
        return None

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.values.dtype

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """See the base class."""
        return self._spread(input, bias, F.linear)

    def pointwise(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """See the base class."""
        return self._spread(input, bias, lambda x, w, b: F.conv1d(x, w[:, :, None], b))

    def _spread(
        self, input: Tensor, bias: Tensor | None, product: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    ) -> Tensor:
        if self.kept_columns is not None:
            input = input.index_select(1, self.kept_columns)
        if self.kept_rows is None:
            return product(input, self.values, bias)
        part = product(input, self.values, None if bias is None else bias[self.kept_rows])
        shape = (input.shape[0], self.rows, *input.shape[2:])
        if bias is None:
            out = part.new_zeros(shape)
        else:
            out = bias.to(part.dtype).view(1, -1, *(1,) * (input.dim() - 2)).expand(shape).contiguous()
        return out.index_copy(1, self.kept_rows, part)


def _occupied(weight: Tensor) -> tuple[Tensor, Tensor]:
    filled = weight.detach().ne(0)
    return filled.any(1), filled.any(0)
