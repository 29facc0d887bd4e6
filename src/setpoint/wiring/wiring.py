"""What is known of a model's axes: groups that may change together, and what may not and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from setpoint.wiring.calls import Role
from setpoint.wiring.layouts import Layout
from setpoint.wiring.removal import Branch, take_out
from setpoint.wiring.resize import resize

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

# What selections of residual branches go by; no module's path, as it has a space in it.
BRANCHES = "residual branches"

Kind = Literal["channel", "neuron", "head", "hidden", "other"]


@dataclass(frozen=True, eq=False)
class Slice:
    """Where the units of a group lie in one tensor.

    Attributes:
        tensor: the first of its names in the model's parameters and buffers.
        axis: of the tensor.
        index: (units, k) int64, the positions along the axis that belong to each unit.
        role: whether this tensor makes the units' values (weights' outputs, biases), reads them (weights' inputs), or
            multiplies them (norms' scales, shifts and statistics).
    """

    tensor: str
    axis: int
    index: Tensor
    role: Role


@dataclass(frozen=True, eq=False)
class Group:
    """Units that may be removed or repeated, each with everything that belongs to it.

    Attributes:
        name: the path of the module that makes the units' values first, or the name of a parameter that is no module's
            weight or bias. Where an axis is a product of several free ones (groups of a grouped convolution and the
            channels of each; shared heads and the queries of each), the second has `#2` behind it, and so on: such
            groups overlap in their tensors.
        size: the number of units.
        slices: where they lie. A tensor that both makes and reads them (a tied embedding) has one slice for each role.
        kind: `channel` of convolutions, `neuron` between two linear layers, `head` of attention (all that share a
            key and value), `hidden` for a stream that layers read and add to, otherwise `other`.
    """

    name: str
    size: int
    slices: tuple[Slice, ...]
    kind: Kind


@dataclass(frozen=True)
class Pin:
    """An axis, or a factor or part of one, that must keep its size.

    Attributes:
        tensor: the first of its names.
        axis: of the tensor.
        module: the path of the module in whose forward the reason arose; empty for the model itself.
        reason: in words.
    """

    tensor: str
    axis: int
    module: str
    reason: str


@dataclass(frozen=True)
class Attribute:
    """An integer of a module that is the size of an axis.

    Attributes:
        module: its path.
        name: of the attribute.
        position: which entry of a tuple; None for a plain integer.
        layout: of the axis whose size it is.
    """

    module: str
    name: str
    position: int | None
    layout: Layout


@dataclass(frozen=True, eq=False)
class Wiring:
    """The axes of a model, as `derive` found them. Holds no reference to the model.

    Attributes:
        groups: the free axes, in the order in which the model makes their values.
        pinned: what is not free, with the reason found first.
        attributes: which integers of modules follow which axes.
        layouts: for each tensor, how its axes are made of groups.
        aliases: all names of each tensor by its first.
        inexact: names of groups that norms average over, which `inexact_norms` left free.
        branches: the residual branches that can be taken out, where they were looked for.
        refused: by module, why other terms of sums are no such branches.
    """

    groups: tuple[Group, ...]
    pinned: tuple[Pin, ...]
    attributes: tuple[Attribute, ...]
    layouts: Mapping[str, tuple[Layout, ...]]
    aliases: Mapping[str, tuple[str, ...]]
    inexact: frozenset[str] = frozenset()
    branches: tuple[Branch, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Group:
        """The group of this name.

        Raises:
            KeyError: with the names there are.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(f"no group {name!r}; possible: {', '.join(g.name for g in self.groups) or 'none'}")

    def resize(self, model: nn.Module, selections: Mapping[str, Tensor]) -> None:
        """Keep, in this order, the selected units of some groups and all units of the others. In place.

        Under the name `BRANCHES`, selections also say which of the residual branches stay: none may be named twice,
        and all may go. Plain modules without parameters take the places of their modules.

        Parameters become new ones (tied ones stay tied) with their flags, dtype, device and memory format and without
        gradients; an optimizer must be made anew. Modules' attributes follow; configurations that modules share, such
        as those of the transformers library, do not. For a copy, deep-copy the model first.

        Args:
            model: the model that the wiring was derived from, or one of the same class and sizes.
            selections: by group name, unit numbers (n,) int64, n >= 1. Numbers may repeat, which duplicates units.

        Raises:
            KeyError: for a name that no group has.
            ValueError: for a selection that is empty, not one-dimensional or out of range, and for a model whose
                tensors are not those of the wiring.
        """
        groups = {name: selection for name, selection in selections.items() if name != BRANCHES}
        for name, selection in groups.items():
            _check(self[name], selection)
        gone = self._without(selections[BRANCHES]) if BRANCHES in selections else []
        if groups:
            resize(model, self, groups)
        take_out(model, gone)

    def _without(self, selection: Tensor) -> list[Branch]:
        kept = selection.tolist()
        if selection.dim() != 1 or len(set(kept)) < len(kept) or not set(kept) <= set(range(len(self.branches))):
            raise ValueError(f"there are branches 0 to {len(self.branches) - 1}, each at most once; {kept} was given")
        return [branch for i, branch in enumerate(self.branches) if i not in kept]


def _check(group: Group, selection: Tensor) -> None:
    if selection.dim() != 1 or selection.dtype not in _INTEGERS or not len(selection):
        raise ValueError(
            f"group {group.name!r}: unit numbers in a tensor of shape (n,), n >= 1, are possible; "
            f"shape {tuple(selection.shape)} of {selection.dtype} was given"
        )
    if int(selection.min()) < 0 or int(selection.max()) >= group.size:
        raise ValueError(f"group {group.name!r} has units 0 to {group.size - 1}; {selection.tolist()} was given")
