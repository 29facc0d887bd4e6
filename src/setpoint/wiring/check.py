"""A wiring put to the test on a copy of its model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from setpoint.inputs import call_arguments
from setpoint.wiring.resize import tensor_of
from setpoint.wiring.wiring import Group, Wiring

_SEED = 7


def check(
    model: nn.Module,
    wiring: Wiring,
    args: Any,
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
    answer = _caller(args, kwargs or {})
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


def check_growth(
    model: nn.Module,
    wiring: Wiring,
    selections: Mapping[str, Tensor],
    args: Any,
    *,
    tolerance: float = 1e-5,
) -> None:
    """Grow a copy of a model with random weights, in evaluation mode, which must not change its outputs.

    Units are repeated and the weights that read them divided by how often each is there, in float64 where the model
    can. Axes that norms average over grow by doubling every unit instead, as only that keeps the averages. For groups
    of tied weights that are read in two roles, and on the meta device, only the outputs' shapes are compared. The model
    itself stays as it is.

    Args:
        model: that the wiring was derived from.
        wiring: to be tested.
        selections: by group name, unit numbers in which each unit is there at least once.
        args: inputs to compare outputs on.
        tolerance: for the largest difference, relative to the largest output.

    Raises:
        ValueError: with the group's name, if the larger model fails or answers otherwise.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        test = _exact_test(model, wiring, args, tolerance)
    groups = {name: wiring[name] for name in selections}
    untied = {name: group for name, group in groups.items() if not is_tied(group)}
    # What is tied is compared by shapes alone, which must not keep the others from being compared.
    for together in (untied, groups) if len(untied) < len(groups) else (groups,):
        error = _failure(test, together, selections)
        for name in together if error else ():
            alone = _failure(test, {name: groups[name]}, selections)
            if alone is not None:
                raise ValueError(f"the wiring of {name!r} is not what it seems: {alone}") from alone
        if error is not None:
            raise ValueError(f"the wiring is not what it seems: {error}") from error


def _failure(test: _Test, groups: Mapping[str, Group], selections: Mapping[str, Tensor]) -> AssertionError | None:
    try:
        test.grow(groups, {name: selections[name] for name in groups})
    except AssertionError as error:
        return error
    return None


def _exact_test(model: nn.Module, wiring: Wiring, inputs: Any, tolerance: float) -> _Test:
    """A test in float64; in float32 for models that insist on it."""

    def test(dtype: torch.dtype, tolerance: float) -> _Test:
        moved = pytree.tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)
        base, answer = _randomised(model).to(dtype), _caller(moved, {})
        if not all(t.is_meta or bool(torch.isfinite(t).all()) for t in answer(base)):
            base = copy.deepcopy(model).eval().to(dtype)
        return _Test(base, wiring, answer, tolerance, torch.Generator().manual_seed(_SEED))

    try:
        return test(torch.float64, tolerance)
    except RuntimeError:
        return test(torch.float32, 10 * tolerance)


def _caller(inputs: Any, kwargs: Mapping[str, Any]) -> Callable[[nn.Module], list[Tensor]]:
    """Calls a network, and gives the tensors that it answers with."""
    args, by_name = call_arguments(inputs)

    def answer(network: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            return [t for t in pytree.tree_leaves(network(*args, **by_name, **kwargs)) if isinstance(t, Tensor)]

    return answer


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
        self.grow(groups, {name: self._repeats(group) for name, group in groups.items()})
        exact = not self.wiring.inexact & groups.keys()
        kept = {name: self._kept(group) for name, group in groups.items()}
        masked = copy.deepcopy(self.base)
        for name, group in groups.items():
            clear(masked, group, _complement(kept[name], group.size))
        self._compare(f"shrinking {', '.join(groups)}", self._resized(kept), self.answer(masked), exact)

    def grow(self, groups: Mapping[str, Group], selections: Mapping[str, Tensor]) -> None:
        twice = {n: torch.arange(groups[n].size).repeat_interleave(2) for n in self.wiring.inexact & groups.keys()}
        # Averages stay as they are if every unit is there twice.
        grown = {**selections, **twice}
        larger = self._resized(grown)
        divide(larger, self.wiring, grown)
        tied = any(is_tied(group) for group in groups.values())
        self._compare(f"growing {', '.join(groups)}", larger, self.expected, not tied)

    def _repeats(self, group: Group) -> Tensor:
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
            if exact and theirs.is_floating_point() and not theirs.is_meta:
                scale = theirs.abs().max().clamp_min(1e-12)
                off = float((mine - theirs).abs().max() / scale)
                if not off <= self.tolerance:
                    raise AssertionError(f"{what}: outputs differ by {off:.2g} of their largest value")


def is_tied(group: Group) -> bool:
    """Whether one axis of one tensor both makes the units' values and reads them, as a tied embedding's does."""
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
