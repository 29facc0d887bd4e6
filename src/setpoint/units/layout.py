"""How the axes of a parameter are to be read: outputs, inputs, groups and taps, whatever the order of storage."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


@dataclass(frozen=True)
class Layout:
    """The canonical form `(groups, outputs, inputs, taps)` of one parameter, outputs and inputs counted per group.

    A Linear weight has one group and one tap; a convolution has a tap for each kernel position. Parameters of other
    modules are read as (output, input, taps...).

    Attributes:
        shape: the parameter's own shape.
        groups: of a convolution, otherwise 1.
        transposed: stored with the inputs first, as transposed convolutions are.
        convolution: whether there are kernels and filters to speak of.
    """

    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    convolution: bool = False

    @classmethod
    def of(cls, module: nn.Module | None, parameter: Tensor) -> Layout:
        """Read the layout off the module that owns the parameter as its `weight`."""
        shape = tuple(parameter.shape)
        if isinstance(module, _ConvNd):
            return cls(shape, module.groups, isinstance(module, _ConvTransposeNd), True)
        return cls(shape)

    @property
    def canonical(self) -> tuple[int, int, int, int]:
        """Sizes (groups, outputs, inputs, taps)."""
        if len(self.shape) < 2:
            return 1, prod(self.shape), 1, 1
        first, second, taps = self.shape[0] // self.groups, self.shape[1], prod(self.shape[2:])
        return (self.groups, second, first, taps) if self.transposed else (self.groups, first, second, taps)

    def to_canonical(self, tensor: Tensor) -> Tensor:
        """View (or copy, where strides forbid a view) a tensor of the parameter's shape in canonical form."""
        groups, outputs, inputs, taps = self.canonical
        if self.transposed:
            return tensor.reshape(groups, inputs, outputs, taps).transpose(1, 2)
        return tensor.reshape(groups, outputs, inputs, taps)

    def from_canonical(self, tensor: Tensor) -> Tensor:
        """The inverse of `to_canonical`, for tensors of any dtype."""
        return (tensor.transpose(1, 2) if self.transposed else tensor).reshape(self.shape)
