"""How the axes of a parameter are to be read: outputs, inputs, groups and taps, whatever the order of storage."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


@dataclass(frozen=True)
class Layout:
    """The canonical form `(groups, outputs, inputs, taps)` of one parameter, outputs and inputs counted per group.

    A Linear weight has one group and one tap; a convolution has a tap for each kernel position; of the stacked weights
    of experts, each expert is a group.

    Attributes:
        shape: the parameter's own shape.
        groups: of a convolution, otherwise 1.
        transposed: stored with the inputs first, as transposed convolutions are.
        convolution: whether there are kernels and filters to speak of.
        stacked: whether the first axis counts matrices of their own, each a group.
        known: whether it is known which axes are outputs and which inputs; where it is not, only single weights are
            units.
    """

    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    convolution: bool = False
    stacked: bool = False
    known: bool = True

    @classmethod
    def of(cls, module: nn.Module | None, parameter: Tensor) -> Layout:
        """The layout of a module's `weight`: that of a convolution, or else (output, input, taps...)."""
        shape = tuple(parameter.shape)
        if isinstance(module, _ConvNd):
            return cls(shape, module.groups, isinstance(module, _ConvTransposeNd), True)
        return cls(shape)

    @property
    def canonical(self) -> tuple[int, int, int, int]:
        """Sizes (groups, outputs, inputs, taps)."""
        if len(self.shape) < 2:
            return 1, prod(self.shape), 1, 1
        groups, first, second, *taps = (
            self.shape if self.stacked else (self.groups, self.shape[0] // self.groups, *self.shape[1:])
        )
        return (groups, second, first, prod(taps)) if self.transposed else (groups, first, second, prod(taps))

    @property
    def product(self) -> tuple[int, ...]:
        """The shape of one product: without the axis along which matrices of their own are stacked."""
        return self.shape[1:] if self.stacked else self.shape

    def to_canonical(self, tensor: Tensor) -> Tensor:
        """View (or copy, where strides forbid a view) a tensor of the parameter's shape in canonical form."""
        groups, outputs, inputs, taps = self.canonical
        if self.transposed:
            return tensor.reshape(groups, inputs, outputs, taps).transpose(1, 2)
        return tensor.reshape(groups, outputs, inputs, taps)

    def from_canonical(self, tensor: Tensor) -> Tensor:
        """The inverse of `to_canonical`, for tensors of any dtype."""
        return (tensor.transpose(1, 2) if self.transposed else tensor).reshape(self.shape)
