"""Whole residual branches as units: the f of x + f(x) goes, and x passes by.

What a branch adds is in proportion to its last map, a weight and a bias or a norm's scale and shift, and to nothing
else in it: norms inside divide the scale of what stands before them out again, and the scale of queries and keys
changes where attention looks, not how much comes of it. So a branch's magnitude is that of its last map, and a factor
acts on this map alone, which scales the branch as a whole. The branch's other parameters follow: they go when the
branch goes for good. Until then they stay as they are, from which a branch that was shut can open again.

Maps with more outputs have larger norms for the same size of each output. A magnitude is therefore the norm of the last
map by the square root of the number of its outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from setpoint.units.layer import Layer, Part
from setpoint.units.layout import Layout
from setpoint.units.member import Member
from setpoint.units.names import plain_name
from setpoint.wiring import BRANCHES, Branch


def layer_of_branches(model: nn.Module, branches: Sequence[Branch]) -> Layer:
    """The layer whose units are these residual branches."""
    parts: list[Part] = []
    for index, branch in enumerate(branches):
        for name in branch.parameters:
            parameter = model.get_parameter(name)
            last = name in branch.last
            member = Member(Layout(tuple(parameter.shape)), index, len(branches))
            parts.append(Part(plain_name(name), parameter, member, reads=last, follows=not last))
    parts.sort(key=lambda part: part.follows)
    scale = torch.tensor([_outputs(model, branch) for branch in branches], dtype=torch.float64).sqrt()
    return Layer(BRANCHES, tuple(parts), scale, tuple(branch.name for branch in branches))


def _outputs(model: nn.Module, branch: Branch) -> int:
    """How many outputs the last map of a branch has, as its bias or scale says, or else its weight."""
    last = [model.get_parameter(name) for name in branch.last]
    vector = next((p.numel() for p in last if p.ndim <= 1), None)
    if vector is not None:
        return vector
    owner = next((m for m in model.modules() if m._parameters.get("weight") is last[0]), None)
    groups, outputs, _, _ = Layout.of(owner, last[0]).canonical
    return groups * outputs
