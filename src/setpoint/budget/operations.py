"""The operations of a forward pass, and how their sizes follow the widths of groups."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from setpoint.inputs import call_arguments
from setpoint.wiring import Wiring


@dataclass(frozen=True)
class Size:
    """A whole number that is `constant` plus so much for each unit of some groups.

    Attributes:
        constant: what is there in any case.
        slopes: by group.
    """

    constant: int
    slopes: tuple[tuple[str, int], ...] = ()

    def at(self, widths: Mapping[str, int]) -> int:
        """The number at the widths of the groups."""
        return self.constant + sum(slope * widths[name] for name, slope in self.slopes)


@dataclass(frozen=True)
class Made:
    """A tensor to be made: sizes, the order of its axes in memory, and which of them are repeated.

    Attributes:
        sizes: of its axes; plain numbers once the widths are put in.
        order: axes from the one with the largest stride to the one with the smallest.
        repeated: axes along which all entries are the same memory.
        dtype: of the entries.
    """

    sizes: tuple[Any, ...]
    order: tuple[int, ...]
    repeated: tuple[bool, ...]
    dtype: torch.dtype

    def make(self, device: torch.device) -> Tensor:
        """A tensor of these sizes: random, or zeros where the entries are whole numbers."""
        held = [1 if again else n for n, again in zip(self.sizes, self.repeated)]
        stored = [held[axis] for axis in self.order]
        if self.dtype.is_floating_point:
            # Uniform in [0.5, 1.5]: fit for variances and far from denormal numbers.
            tensor = (torch.rand(stored, device=device) + 0.5).to(self.dtype)
        else:
            tensor = torch.zeros(stored, dtype=self.dtype, device=device)
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return tensor.permute(back).expand(self.sizes)


@dataclass(frozen=True)
class Operation:
    """One call of an operator with what it is given; sizes are `Size`, or numbers once the widths are put in."""

    function: Any
    leaves: tuple[Any, ...]
    structure: Any

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The different sizes that follow widths, in the order in which they come."""
        found: dict[Size, None] = {}
        for leaf in self.leaves:
            for size in leaf.sizes if isinstance(leaf, Made) else (leaf,):
                if isinstance(size, Size) and size.slopes:
                    found[size] = None
        return tuple(found)

    def at(self, values: Mapping[Size, int]) -> Operation:
        """The operation with numbers for its sizes."""
        return Operation(self.function, tuple(_at(leaf, values) for leaf in self.leaves), self.structure)

    def work(self, device: torch.device) -> Any:
        """The operation on tensors made for it, as a function without arguments."""
        leaves = [leaf.make(device) if isinstance(leaf, Made) else leaf for leaf in self.leaves]
        args, kwargs = _pytree.tree_unflatten(leaves, self.structure)
        return lambda: self.function(*args, **kwargs)


def _at(leaf: Any, values: Mapping[Size, int]) -> Any:
    if isinstance(leaf, Made):
        sizes = tuple(values.get(n, n.constant) if isinstance(n, Size) else n for n in leaf.sizes)
        return Made(sizes, leaf.order, leaf.repeated, leaf.dtype)
    return values.get(leaf, leaf.constant) if isinstance(leaf, Size) else leaf


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators that do work; views of tensors do none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not func.is_view:
            leaves, structure = _pytree.tree_flatten((args, kwargs))
            self.calls.append(Operation(func, tuple(_described(leaf) for leaf in leaves), structure))
        return func(*args, **kwargs)


def _described(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    strides = tuple(leaf.stride())
    order = tuple(sorted(range(leaf.ndim), key=strides.__getitem__, reverse=True))
    repeated = tuple(stride == 0 and n > 1 for stride, n in zip(strides, leaf.shape))
    return Made(tuple(leaf.shape), order, repeated, leaf.dtype)


@torch.no_grad()
def operations_of(model: nn.Module, wiring: Wiring, groups: Sequence[str], inputs: Any) -> tuple[Operation, ...]:
    """The operations of a forward pass, their sizes as functions of the groups' widths.

    Found by running the model once as it is, and once with a unit less in each group.

    Args:
        model: in evaluation mode; not changed.
        wiring: its axes.
        groups: whose widths change.
        inputs: what it is called with, on its device: a tensor, a tuple of arguments, or a mapping of them by name.

    Raises:
        ValueError: if the model does something else once a group has a unit less.
    """
    whole = _record(model, inputs)
    less = {}
    for name in groups:
        size = wiring[name].size
        if size > 1:
            small = copy.deepcopy(model)
            wiring.resize(small, {name: torch.arange(size - 1)})
            less[name] = (size, _record(small, inputs))
    for name, (_, calls) in less.items():
        if [c.function for c in calls] != [c.function for c in whole]:
            raise ValueError(f"with a unit less in {name!r} the model runs other operations: its latency cannot follow")
    return tuple(
        _joined(call, {name: (size, calls[i]) for name, (size, calls) in less.items()}) for i, call in enumerate(whole)
    )


def _record(model: nn.Module, inputs: Any) -> list[Operation]:
    recorder = _Recorder()
    args, kwargs = call_arguments(inputs)
    with recorder:
        model(*args, **kwargs)
    return recorder.calls


def _joined(call: Operation, less: Mapping[str, tuple[int, Operation]]) -> Operation:
    leaves = []
    for i, leaf in enumerate(call.leaves):
        others = {name: (size, other.leaves[i]) for name, (size, other) in less.items()}
        if isinstance(leaf, Made):
            sizes = tuple(
                _size(n, {name: (size, other.sizes[axis]) for name, (size, other) in others.items()})
                for axis, n in enumerate(leaf.sizes)
            )
            leaves.append(Made(sizes, leaf.order, leaf.repeated, leaf.dtype))
        elif isinstance(leaf, int) and not isinstance(leaf, bool):
            leaves.append(_size(leaf, others))
        else:
            leaves.append(leaf)
    return Operation(call.function, tuple(leaves), call.structure)


def _size(whole: int, less: Mapping[str, tuple[int, int]]) -> Any:
    slopes = {name: whole - n for name, (_, n) in less.items() if n != whole}
    if not slopes:
        return whole
    constant = whole - sum(slope * less[name][0] for name, slope in slopes.items())
    return Size(constant, tuple(slopes.items()))
