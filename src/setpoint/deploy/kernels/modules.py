"""Layers that multiply by a sparse matrix: for inference only."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from setpoint.deploy.kernels.matrices import SparseMatrix


class SparseLayer(nn.Module):
    """A layer in place of a dense one, which it computes as; without gradients, and in evaluation mode only.

    All that it holds are buffers, so that `state_dict`, `deepcopy` and `to` work as elsewhere. A state dict fits a
    layer of the same zeros, such as a copy. Under autocast it computes in the dtype of its values.

    Args:
        matrix: the weight.
        bias: of shape (matrix.rows,).
    """

    bias: Tensor | None

    def __init__(self, matrix: SparseMatrix, bias: Tensor | None) -> None:
        super().__init__()
        self.matrix = matrix
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.eval()

    def forward(self, input: Tensor) -> Tensor:
        """What the dense layer computes.

        Raises:
            RuntimeError: in training mode, or where a gradient would be needed.
            ValueError: for an input of another dtype than the values', outside autocast, or of another size.
        """
        self._check(input)
        if not _autocasts(input):
            return self._compute(input)
        with torch.autocast(input.device.type, enabled=False):
            return self._compute(input.to(self.matrix.dtype))

    @abstractmethod
    def _compute(self, input: Tensor) -> Tensor: ...

    def _check(self, input: Tensor) -> None:
        name, dtype = type(self).__name__, self.matrix.dtype
        if self.training:
            raise RuntimeError(f"{name} is for inference: call eval() on the model, or train the dense one instead")
        if input.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"{name} computes no gradients, and its input requires one: call the model under "
                "torch.inference_mode() or torch.no_grad(), or use the dense one"
            )
        if input.dtype != dtype and not _autocasts(input):
            raise ValueError(f"{name} holds {dtype} and was given {input.dtype}")


class SparseLinear(SparseLayer):
    """In place of `torch.nn.Linear`: inputs (*, in_features), outputs (*, out_features).

    Outputs are contiguous, unless the matrix is to leave them transposed (`SparseMatrix.transposed`).

    Args:
        matrix: of shape (out_features, in_features).
        bias: of shape (out_features,).
    """

    @property
    def in_features(self) -> int:
        """Size of each input."""
        return self.matrix.columns

    @property
    def out_features(self) -> int:
        """Size of each output."""
        return self.matrix.rows

    @property
    def weight(self) -> Tensor:
        """Of shape (out_features, in_features), for code that reads it: a sparse tensor on most kernels."""
        return self.matrix.tensor

    def _compute(self, input: Tensor) -> Tensor:
        if input.dim() == 0 or input.shape[-1] != self.in_features:
            raise ValueError(f"SparseLinear takes inputs (*, {self.in_features}), not {tuple(input.shape)}")
        rows = input.reshape(-1, self.in_features) if input.dim() != 2 else input
        return self.matrix.linear(rows, self.bias).view(*input.shape[:-1], self.out_features)


class SparsePointwise(SparseLayer):
    """In place of a convolution of kernel size 1 without groups: inputs (n, in_channels, *) or (in_channels, *).

    Outputs are contiguous, with the channels first.

    Args:
        matrix: of shape (out_channels, in_channels).
        bias: of shape (out_channels,).
        stride: along each spatial axis.
    """

    def __init__(self, matrix: SparseMatrix, bias: Tensor | None, stride: Sequence[int]) -> None:
        super().__init__(matrix, bias)
        self.stride = tuple(stride)

    def _compute(self, input: Tensor) -> Tensor:
        if input.dim() == len(self.stride) + 1:
            return self._compute(input.unsqueeze(0)).squeeze(0)
        if input.dim() != len(self.stride) + 2 or input.shape[1] != self.matrix.columns:
            sizes = ", *" * len(self.stride)
            raise ValueError(
                f"SparsePointwise takes inputs (n, {self.matrix.columns}{sizes}), not {tuple(input.shape)}"
            )
        spatial = tuple(slice(None, None, step) for step in self.stride)
        input = input[(slice(None), slice(None)) + spatial]  # noqa: RUF005  (Python 3.10 knows no star in an index)
        out = self.matrix.pointwise(input.flatten(2), self.bias)
        return out.view(input.shape[0], self.matrix.rows, *input.shape[2:])


def _autocasts(input: Tensor) -> bool:
    return not input.is_meta and torch.is_autocast_enabled(input.device.type)
