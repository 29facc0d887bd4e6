"""A weight held in a form that leaves out its zeros, and what it makes of activations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from setpoint.deploy.kernels.products import (
    compressed_linear,
    compressed_pointwise,
    compressed_tensor,
    hear_beta_warning,
    opaque,
)

# A form that stores more of the entries than this has never been seen to win: it is not even timed.
_FULLEST = 0.6
# Nor have blocks that are emptier: single entries are faster.
_EMPTIEST = 1 / 3


class SparseMatrix(nn.Module, ABC):
    """A matrix of shape (rows, columns), held in buffers: those of its parts that are stored.

    Attributes:
        rows, columns: its shape.
        transposed: whether `linear` is to leave its output transposed in memory, if its kernel computes it so.
    """

    _dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float64)

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns, self.transposed = rows, columns, False

    @classmethod
    def refusal(cls, weight: Tensor) -> str | None:
        """Why this form does not suit a weight (rows, columns); None where it is worth timing."""
        if weight.dtype not in cls._dtypes:
            possible = ", ".join(_word(d) for d in cls._dtypes)
            return f"{_word(weight.dtype)} on {weight.device.type}; possible: {possible}"
        return None

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the values."""

    @abstractmethod
    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """`input @ self.T + bias` of shape (n, rows), for an input (n, columns)."""

    @abstractmethod
    def pointwise(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """`self @ input[i] + bias` of shape (n, rows, positions), contiguous, for an input (n, columns, positions)."""

    @property
    def tensor(self) -> Tensor:
        """The matrix as torch has it in this form: a sparse tensor that shares its memory, if there is such a kind."""
        return self.to_dense()

    @torch.no_grad()
    def to_dense(self) -> Tensor:
        """Of shape (rows, columns), in new memory."""
        some = next(b for b in self.buffers() if b.is_floating_point())
        return self.linear(torch.eye(self.columns, dtype=self.dtype, device=some.device), None).t().contiguous()

    def extra_repr(self) -> str:
        """Shape and bytes."""
        return f"{self.rows}x{self.columns}, {nbytes(self):,} bytes"


class CompressedMatrix(SparseMatrix):
    """Compressed rows of single entries (CSR), or of square blocks (BSR), with indices of 32 bits.

    Indices of 64 bits, torch's default, take half as much memory again, and more time.

    Args:
        weight: of shape (rows, columns).
        block: side of the blocks, which must divide both; None for single entries.
    """

    compressed: Tensor
    indices: Tensor
    values: Tensor

    def __init__(self, weight: Tensor, block: int | None = None) -> None:
        super().__init__(*weight.shape)
        hear_beta_warning()
        weight = weight.detach()
        sparse = weight.to_sparse_csr() if block is None else weight.to_sparse_bsr((block, block))
        self.register_buffer("compressed", sparse.crow_indices().to(torch.int32))
        self.register_buffer("indices", sparse.col_indices().to(torch.int32))
        # Not a view of the sparse tensor, whose like no compiler knows.
        self.register_buffer("values", sparse.values().clone(memory_format=torch.contiguous_format))

    @classmethod
    def refusal(cls, weight: Tensor, block: int | None = None) -> str | None:
        """See the base class."""
        if (reason := super().refusal(weight)) is not None:
            return reason
        b = block or 1
        rows, columns = weight.shape
        if rows % b or columns % b:
            return f"{b}x{b} blocks do not divide {rows}x{columns}"
        entries = weight.ne(0)
        stored = float(entries.view(rows // b, b, columns // b, b).any(3).any(1).double().mean())
        if stored > _FULLEST:
            what = "entries" if block is None else f"{b}x{b} blocks"
            return f"{1 - stored:.0%} of the {what} are zero, fewer than {1 - _FULLEST:.0%}"
        if (full := float(entries.double().mean()) / max(stored, 1e-12)) < _EMPTIEST and stored:
            return f"the {b}x{b} blocks that are not zero are {full:.0%} full, less than {_EMPTIEST:.0%}"
        return None

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.values.dtype

    @property
    def tensor(self) -> Tensor:
        """See the base class."""
        return compressed_tensor(self.compressed, self.indices, self.values, self.columns)

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """See the base class."""
        run = torch.ops.setpoint.compressed_linear if opaque(input) else compressed_linear
        out: Tensor = run(input, self.compressed, self.indices, self.values, bias, self.transposed)
        return out

    def pointwise(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """See the base class."""
        run = torch.ops.setpoint.compressed_pointwise if opaque(input) else compressed_pointwise
        out: Tensor = run(input, self.compressed, self.indices, self.values, bias)
        return out


def nbytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, each counted once."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
