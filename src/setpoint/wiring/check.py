"""A wiring put to the test on a copy of its model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from setpoint.wiring.resize import tensor_of
from setpoint.wiring.wiring import Group, Wiring

_SEED = 7


def check(
    model: nn.Module,
    wiring: Wiring,
    args: tuple[Any, ...] | Tensor,
    kwargs: Mapping[str, Any] | None = None,
    *,
    tolerance: float = 1e-5,
) -> None:
    """Grow and shrink copies of a model with random weights, in evaluation mode, and compare their outputs.

    Units are duplicated and the weights that read them divided by how often each is there, which must not change the
    outputs; then random units are set to zero in every tensor that holds them, which must give the outputs of the model
    without them. Every group is tested alone, then all at once. The model itself stays as it is.

    Axes that norms average over (`inexact_norms`) grow by doubling every unit. When they shrink, and when tied weights
    that are read in two roles grow, only the outputs' shapes are compared.

    Args:
        model: that the wiring was derived from; in float32 or better, as rounding would be taken for a fault.
        wiring: to be tested.
        args: inputs to compare outputs on.
        kwargs: likewise.
        tolerance: for the largest difference, relative to the largest output.

    Raises:
        AssertionError: with the group's name, if a resized model fails, or answers otherwise.
    """
    inputs = (args,) if isinstance(args, Tensor) else tuple(args)

    def answer(network: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            found = pytree.tree_leaves(network(*inputs, **(kwargs or {})))
        return [t for t in found if isinstance(t, Tensor)]

    generator = torch.Generator().manual_seed(_SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        base = _randomised(model)
        if not all(bool(torch.isfinite(t).all()) for t in answer(base)):
            base = copy.deepcopy(model).eval()  # it takes its weights to be of some kind, such as positive
        test = _Test(base, wiring, answer, tolerance, generator)
        for group in wiring.groups:
            test.both({group.name: group})
        if len(wiring.groups) > 1:
            test.both({g.name: g for g in wiring.groups})


def _randomised(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, with random parameters and statistics of ordinary size."""
    base = copy.deepcopy(model).eval()
    with torch.no_grad():
        for tensor in (*base.parameters(), *base.buffers()):
            if tensor.is_floating_point() and tensor.dim() > 0:
                fan = max(tensor[0].numel(), 1) if tensor.dim() > 1 else 4
                tensor.copy_(torch.randn(tensor.shape) / fan**0.5)
        for module in base.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and name == "running_var":
                    buffer.copy_(torch.rand(buffer.shape) + 0.5)
    return base


class _Test:
    def __init__(
        self,
        base: nn.Module,
        wiring: Wiring,
        answer: Callable[[nn.Module], list[Tensor]],
        tolerance: float,
        generator: torch.Generator,
    ) -> None:
        self.base, self.wiring, self.answer, self.tolerance = base, wiring, answer, tolerance
        self.generator = generator
        self.expected = answer(base)

    def both(self, groups: Mapping[str, Group]) -> None:
        label = ", ".join(groups)
        grown = {name: self._repeats(group) for name, group in groups.items()}
        larger = self._resized(grown)
        exact = not self.wiring.inexact & groups.keys()
        tied = any(_is_tied(group) for group in groups.values())
        divide(larger, self.wiring, grown)
        self._compare(f"growing {label}", larger, self.expected, not tied)

        kept = {name: self._kept(group) for name, group in groups.items()}
        masked = copy.deepcopy(self.base)
        for name, group in groups.items():
            clear(masked, group, _complement(kept[name], group.size))
        self._compare(f"shrinking {label}", self._resized(kept), self.answer(masked), exact)

    def _repeats(self, group: Group) -> Tensor:
        if group.name in self.wiring.inexact:  # averages stay as they are if every unit is there twice
            return torch.arange(group.size).repeat_interleave(2)
        extra = torch.randint(group.size, (max(1, group.size // 3),), generator=self.generator)
        return torch.cat([torch.arange(group.size), extra]).sort().values

    def _kept(self, group: Group) -> Tensor:
        count = max(1, (group.size + 1) // 2)
        return torch.randperm(group.size, generator=self.generator)[:count].sort().values

    def _resized(self, selections: Mapping[str, Tensor]) -> nn.Module:
        model = copy.deepcopy(self.base)
        self.wiring.resize(model, selections)
        return model

    def _compare(self, what: str, model: nn.Module, expected: list[Tensor], exact: bool) -> None:
        try:
            found = self.answer(model)
        except Exception as error:
            raise AssertionError(f"{what}: the resized model fails: {error}") from error
        for mine, theirs in zip(found, expected):
            if mine.shape != theirs.shape:
                shapes = f"{tuple(mine.shape)} instead of {tuple(theirs.shape)}"
                raise AssertionError(f"{what}: an output has shape {shapes}")
            if exact and theirs.is_floating_point():
                scale = theirs.abs().max().clamp_min(1e-12)
                off = float((mine - theirs).abs().max() / scale)
                if not off <= self.tolerance:
                    raise AssertionError(f"{what}: outputs differ by {off:.2g} of their largest value")


def _is_tied(group: Group) -> bool:
    roles: dict[tuple[str, int], set[str]] = {}
    for s in group.slices:
        roles.setdefault((s.tensor, s.axis), set()).add(s.role)
    return any({"produces", "consumes"} <= found for found in roles.values())


def _complement(kept: Tensor, size: int) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool)
    mask[kept] = False
    return mask.nonzero().squeeze(1)


@torch.no_grad()
def clear(model: nn.Module, group: Group, units: Tensor) -> None:
    """Set units to zero in every tensor that holds them, in place."""
    for s in group.slices:
        tensor = tensor_of(model, s.tensor)
        tensor.index_fill_(s.axis, s.index[units].reshape(-1).to(tensor.device), 0)


@torch.no_grad()
def divide(model: nn.Module, wiring: Wiring, selections: Mapping[str, Tensor]) -> None:
    """Divide the weights that read repeated units by how often each is there, in place in the resized model."""
    for name, selection in selections.items():
        group = wiring[name]
        times = torch.bincount(selection, minlength=group.size).double()
        for s in group.slices:
            if s.role != "consumes":
                continue
            tensor = tensor_of(model, s.tensor)
            layout = wiring.layouts[s.tensor][s.axis]
            units = layout.units(name)
            divisor = torch.where(units >= 0, times[units.clamp_min(0)], 1.0)[layout.positions(selections)]
            shape = [1] * tensor.dim()
            shape[s.axis] = -1
            tensor.div_(divisor.to(tensor).reshape(shape))
