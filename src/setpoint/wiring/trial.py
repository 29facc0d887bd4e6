"""Branches put to the test: each is taken out of a copy of the model, which must run and compute the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from setpoint.meta import without_values
from setpoint.wiring.branches import Found
from setpoint.wiring.recording import Called, Shape, recorded, stand_in_for
from setpoint.wiring.removal import Branch, take_out, without
from setpoint.wiring.resize import tensor_of
from setpoint.wiring.twins import clear, sharing

_logger = logging.getLogger(__name__)
_SEED = 7
_Inputs = tuple[tuple[Any, ...], dict[str, Any]]
# What two runs of the same kernels may differ by, by the largest entry.
_TOLERANCE = 1e-6


def removable(
    model: nn.Module, found: Mapping[str, Found], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[Branch], dict[str, str]]:
    """Find out how branches can be taken out.

    Each is taken out of a copy of the model alone, of fake tensors where the model runs on these, and must leave the
    shapes of the outputs as they are, in evaluation and in training mode. Then all are taken out at once, and must
    leave on random inputs what the model with their parameters at zero computes. The model stays as it is.

    Args:
        model: to look at.
        found: the branches by their names.
        args: inputs to call it with.
        kwargs: likewise.

    Returns:
        Those that can be, in the order given, and by name why the others cannot.
    """
    trial = _Trial(model, args, kwargs)
    with _own_randomness(model), _quiet():
        branches, refused = trial.alone(found)
        wrong = trial.wrong_together(branches, {branch.place for branch in found.values()})
    refused |= dict.fromkeys(wrong, "without it the model does not compute what it does with its weights at zero")
    return [branch for branch in branches if branch.name not in wrong], refused


@contextmanager
def _own_randomness(model: nn.Module) -> Iterator[None]:
    devices = sorted({p.get_device() for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch tells of every operator that fails on fake tensors, which here is a matter of course."""
    telling = logging.getLogger("torch._subclasses.fake_tensor")
    before, telling.disabled = telling.disabled, True
    try:
        yield
    finally:
        telling.disabled = before


class _Trial:
    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.model = model
        self.inputs: _Inputs = (args, dict(kwargs))

    # Each alone

    def alone(self, found: Mapping[str, Found]) -> tuple[list[Branch], dict[str, str]]:
        try:
            with without_values(self.model, self.inputs) as (twin, inputs):
                return self._each(twin, inputs, found)
        except Exception as error:  # whatever a model raises where its tensors have no values
            _logger.debug("the model does not run on fake tensors", exc_info=error)
        try:
            return self._each(sharing(self.model), self.inputs, found)
        except Exception as fault:
            reason = f"the model does not run on the example inputs in evaluation mode: {fault}"
            return [], dict.fromkeys(found, reason)

    def _each(
        self, twin: nn.Module, inputs: _Inputs, found: Mapping[str, Found]
    ) -> tuple[list[Branch], dict[str, str]]:
        run, calls = self._runner(twin, inputs, found)
        branches: list[Branch] = []
        refused: dict[str, str] = {}
        for name, branch in found.items():
            answer = _taken_out(name, branch, calls, run)
            if isinstance(answer, Branch):
                branches.append(answer)
            else:
                refused[name] = f"it cannot be taken out: {answer}"
        return branches, refused

    def _runner(
        self, twin: nn.Module, inputs: _Inputs, found: Mapping[str, Found]
    ) -> tuple[Callable[[Branch], None], dict[str, Called]]:
        """What tells whether the model runs without a branch, and how the branches' modules are called."""

        def shapes(training: bool) -> list[tuple[int, ...]]:
            return [tuple(t.shape) for t in _answer(twin.train(training), inputs)]

        with recorded(twin, [path for branch in found.values() for path in branch.modules]) as calls:
            expected = {False: shapes(False)}
        try:
            expected[True] = shapes(True)
        except Exception as error:  # such as norms that cannot train on one example: so be it
            _logger.debug("the model does not run in training mode", exc_info=error)

        def run(branch: Branch) -> None:
            with without(twin, [branch]):
                if any(shapes(training) != before for training, before in expected.items()):
                    raise ValueError("the model's outputs would have other shapes")

        return run, calls

    # All together

    def wrong_together(self, branches: Sequence[Branch], places: Set[str]) -> set[str]:
        """The branches without which the model, or a module at these places, computes something else."""
        if not branches or self._agrees(branches, places):
            return set()
        wrong = {branch.name for branch in branches if not self._agrees([branch], places)}
        return wrong or {branch.name for branch in branches}

    def _agrees(self, branches: Sequence[Branch], places: Set[str]) -> bool:
        masked, small = sharing(self.model).eval(), sharing(self.model).eval()
        for name in (name for branch in branches for name in branch.parameters):
            clear(masked, tensor_of(masked, name))
        take_out(small, branches)
        torch.manual_seed(_SEED)
        made_up = pytree.tree_map_only(Tensor, _random_like, self.inputs)
        try:
            inputs, expected = made_up, _everything(masked, made_up, places)
        except Exception as error:  # a model may not take all numbers
            _logger.debug("the model does not run on random numbers", exc_info=error)
            inputs, expected = self.inputs, _everything(masked, self.inputs, places)
        try:
            pairs = zip(expected, _everything(small, inputs, places), strict=True)
            return all(_same(one, other) for one, other in pairs)
        except Exception as error:
            _logger.debug("without its branches the model fails", exc_info=error)
            return False


def _taken_out(
    name: str, found: Found, calls: Mapping[str, Called], run: Callable[[Branch], None]
) -> Branch | Exception:
    """The branch with stand-ins that answer as little as the code between them takes; or the fault."""
    for shape in get_args(Shape):
        answer = _tried(name, found, calls, run, shape)
        if isinstance(answer, Branch):
            break
    return answer


def _tried(
    name: str, found: Found, calls: Mapping[str, Called], run: Callable[[Branch], None], shape: Shape
) -> Branch | Exception:
    try:
        stand_ins = [stand_in_for(path, calls, shape, handed) for path, handed in found.modules.items()]
        branch = Branch(name, found.parameters, found.last, tuple(stand_ins))
        run(branch)
    except Exception as error:  # whatever a model raises where its modules answer otherwise
        return error
    return branch


@torch.no_grad()
def _answer(model: nn.Module, inputs: _Inputs) -> list[Tensor]:
    args, kwargs = inputs
    return [leaf for leaf in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor)]


def _everything(model: nn.Module, inputs: _Inputs, places: Set[str]) -> list[Tensor]:
    """What a model answers, and modules within it."""
    torch.manual_seed(_SEED)
    with recorded(model, sorted(places)) as calls:
        answers = _answer(model, inputs)
    inner = pytree.tree_leaves([calls[place].answer for place in sorted(calls)])
    return [*answers, *(leaf for leaf in inner if isinstance(leaf, Tensor))]


def _random_like(given: Tensor) -> Tensor:
    """Random numbers in place of numbers, which may well be all zero; positions and truth values as they are."""
    return torch.randn_like(given) if given.is_floating_point() else given


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return bool((one == other).all())
    scale = float(one.abs().max()) if one.numel() else 0.0
    return torch.allclose(one, other, rtol=0.0, atol=_TOLERANCE * max(scale, 1e-30), equal_nan=True)
