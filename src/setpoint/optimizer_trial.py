"""A trial of an optimizer on a few small tensors: what its state is made of, and whether zeros last under it.

Nothing is known of kinds of optimizers. A small copy of the user's takes a few steps on weights a part of which are
zero and get no gradient; what its state holds there is what a reset entry begins with, and what its state holds of the
other weights tells copies of them from the rest. Then zeros are made and held as in a run, and looked for after every
step and every change between `train()` and `eval()`.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from setpoint.entry_state import Kind, Memory, Path, Slot, decoded, fill, mask_gradient, reset, slot_key, state_tensors
from setpoint.optimizer_copy import copy_optimizer

# Steps before and after the zeros are made: slow weights are blended back every fifth or tenth step.
_DENSE, _FROZEN = 6, 12
# Evaluations of a closure in one step: sharpness-aware optimizers take two, line searches any number.
_EVALUATIONS = 2
# A copy of a weight has moved by less than this part of it after a step. Weights are far larger than a step.
_NEAR, _SIZE = 0.3, 10.0
_LARGEST, _SAMPLES = 8192, 8


class BrokenZerosError(Exception):
    """Zeros do not last, and why."""


@dataclass
class Trial:
    """A copy of an optimizer, at work.

    Attributes:
        holders: the copy of the outermost wrapper first, and then of what stands inside.
        site: the optimizer whose step hooks are used.
        weights: the tensors that it moves.
        gradients: the way they are made: see `WAYS`.
        carried: whether weights and state are those of the original.
        masking: make zeros and hold them; otherwise only go through the same steps.
    """

    holders: Sequence[Any]
    site: Optimizer
    weights: Sequence[Tensor]
    gradients: str
    carried: bool = False
    masking: bool = True

    def __post_init__(self) -> None:
        self.memory = Memory(complete=True)
        self._generator = torch.Generator().manual_seed(0)
        self.gone = [self._entries(w) for w in self.weights]
        self._steps = self._evaluations = 0
        self.site.register_step_pre_hook(lambda *_: self._before())
        self.site.register_step_post_hook(lambda *_: self._after())
        self._switch("train")

    def learn(self) -> Memory:
        """Take the first steps, and look at the state.

        Raises:
            BrokenZerosError: if a step moves the weights many times, or runs its hooks never.
            Exception: whatever the optimizer raises.
        """
        if not self.carried:
            for weight in self.weights:
                size = _SIZE * (1.0 + self._drawn(weight)) * (self._drawn(weight) - 0.5).sign()
                weight.copy_(size.to(weight))
        self.memory = Memory()
        self._hold()
        self.memory = Memory(complete=True)
        copies = self._sighted({})
        for _ in range(_DENSE):
            self._step()
            copies = self._sighted(copies)
        if not self._steps:
            raise BrokenZerosError("its step does not run the step hooks of torch.optim.Optimizer")
        self.memory = Memory(self._slots(copies), complete=True)
        return self.memory

    def _sighted(self, known: dict[tuple[Any, ...], bool]) -> dict[tuple[Any, ...], bool]:
        """By tensor of the state, whether it was a copy of the weights when it was first seen."""
        now: dict[tuple[Any, ...], bool] = {}
        for weight, gone, path, value in self._state():
            key = slot_key(weight, path, value)
            if key not in known:
                now[key] = now.get(key, False) or _near(value, weight, gone)
        return {**now, **known}

    def check(self) -> None:
        """Make zeros, and look whether they last.

        Raises:
            BrokenZerosError: if they do not.
        """
        self._freeze("a step")
        for step in range(_FROZEN):
            self._step()
            self._look("a step")
            if step == _FROZEN // 2:
                for mode in ("eval", "train"):
                    self._switch(mode)
                    self._look(f"{mode}()")
        if self._switch("eval"):
            self._freeze("a cut in evaluation mode")
            self._switch("train")
            self._look("train()")
            self._step()
            self._look("a step")
            self._switch("eval")
            self._look("eval()")

    def _freeze(self, when: str) -> None:
        self.gone = [gone | self._entries(w) for gone, w in zip(self.gone, self.weights)]
        for weight, gone in zip(self.weights, self.gone):
            weight.masked_fill_(gone, 0.0)
            reset(self.memory, self.holders, weight, gone)
        self._look(when)

    def _look(self, when: str) -> None:
        for weight, gone in zip(self.weights, self.gone):
            if bool(weight[gone].any()):
                raise BrokenZerosError(f"{when} of it brings weights back that were zero")

    def _switch(self, mode: str) -> bool:
        methods = [method for holder in self.holders if callable(method := getattr(holder, mode, None))]
        for method in methods:
            method()
        return bool(methods)

    def _drawn(self, weight: Tensor) -> Tensor:
        return torch.rand(weight.shape, generator=self._generator).to(weight.device)

    def _entries(self, weight: Tensor) -> Tensor:
        return (self._drawn(weight) < 0.4) & self.masking

    def _feel(self) -> Tensor:
        """Give the weights the gradients of a loss: their product with random numbers, or their sine's."""
        if self.gradients == "plain":
            for weight, pull in zip(self.weights, self._pulls):
                weight.grad = pull.clone()
            return torch.zeros(())
        graph = "graph" in self.gradients
        with torch.enable_grad():
            waves = [w.sin() if graph else w for w in self.weights]
            terms = [(wave * pull).sum(dtype=torch.float64) for wave, pull in zip(waves, self._pulls)]
            loss = torch.stack([term.to(terms[0].device) for term in terms]).sum()
            felt = torch.autograd.grad(loss, list(self.weights), create_graph=graph)
        for weight, gradient in zip(self.weights, felt):
            weight.grad = gradient.to_sparse() if self.gradients == "sparse" else gradient
        return loss

    def _step(self) -> None:
        self._evaluations = 0
        self._pulls = [(self._drawn(w) - 0.5).to(w) for w in self.weights]
        self._feel()
        if "closure" not in self.gradients:
            self.holders[0].step()
            return
        self.holders[0].step(self._closure)
        if self._evaluations > _EVALUATIONS:
            raise BrokenZerosError(
                f"it evaluates its closure {self._evaluations} times within one step, moving weights that were removed "
                "in between"
            )

    def _closure(self) -> Tensor:
        self._evaluations += 1
        loss = self._feel()
        self._before()
        return loss

    def _before(self) -> None:
        for weight, gone in zip(self.weights, self.gone):
            mask_gradient(weight, gone)

    def _after(self) -> None:
        self._steps += 1
        self._hold()

    def _hold(self) -> None:
        for weight, gone in zip(self.weights, self.gone):
            weight.masked_fill_(gone, 0.0)
            reset(self.memory, self.holders, weight, gone, copies_only=True)

    def _state(self) -> Iterator[tuple[Tensor, Tensor, Path, Tensor]]:
        for weight, gone in zip(self.weights, self.gone):
            for path, value in state_tensors(self.holders, weight):
                yield weight, gone, path, value

    def _slots(self, copies: dict[tuple[Any, ...], bool]) -> dict[tuple[Any, ...], Slot]:
        slots: dict[tuple[Any, ...], Slot] = {}
        for weight, gone, path, value in self._state():
            key = slot_key(weight, path, value)
            beside = [v for _, v in state_tensors(self.holders, weight)]
            slot = _slot(value, gone, beside, "copy" if copies.get(key) else "own")
            slots[key] = slot if key not in slots else _both(slots[key], slot)
        return slots


def _near(value: Tensor, weight: Tensor, gone: Tensor) -> bool:
    """Whether the numbers of a tensor are those of the weights, or nearly; of those that are not zero."""
    if not value.dtype.is_floating_point or value.numel() != weight.numel():
        return False
    numbers, weights = (t.reshape(gone.shape)[~gone].double() for t in (decoded(value).to(weight.device), weight))
    return bool((numbers - weights).abs().sum() < _NEAR * weights.abs().sum())


def _slot(value: Tensor, gone: Tensor, beside: Sequence[Tensor], kind: Kind) -> Slot:
    if value.numel() != gone.numel():
        return Slot("other")
    try:
        numbers = decoded(value).reshape(gone.shape)
        at_zero, others = numbers[gone.to(value.device)], numbers[~gone.to(value.device)]
        if kind == "copy":
            fill(value, gone, 0.0)
            return Slot("copy")
        blank = float(at_zero[0])
        if not bool((at_zero == at_zero[0]).all()):
            return Slot("other")
        if not value.dtype.is_floating_point:
            blank = _code_of_zero(beside, int(blank))
        fill(value, gone, blank)
    except (RuntimeError, NotImplementedError, TypeError):
        # A storage that lets nobody in.
        return Slot("other")
    return Slot("own", blank, value.dtype.is_floating_point and bool((others > 0).all()))


def _code_of_zero(beside: Sequence[Tensor], code: int) -> int:
    """The code that a table beside a tensor of codes decodes as zero; rounding may have led to one close to it."""
    tables = [t for t in beside if t.ndim == 1 and t.dtype.is_floating_point and code < t.numel() <= 256]
    tables = [t for t in tables if bool((t == 0).any())]
    nearest = min(tables, key=lambda t: abs(float(t[code])), default=None)
    return code if nearest is None else int((nearest == 0).nonzero()[0])


def _both(one: Slot, other: Slot) -> Slot:
    kinds = {one.kind, other.kind}
    if len(kinds) > 1:
        return Slot("copy") if "copy" in kinds else Slot("other")
    return Slot(one.kind, one.blank, one.positive and other.positive)


# How gradients are made: plain; with the graph that second derivatives need; within a closure; sparse.
WAYS = ("plain", "graph", "closure", "closure graph", "sparse")


def try_out(holders: Sequence[Any], site: Optimizer) -> Memory | None:
    """Try an optimizer, hanging on the step hooks of `site`.

    Args:
        holders: the outermost wrapper, and what stands inside.
        site: one of them.

    Returns:
        What its state is made of; None if no copy of it takes a step, so that nothing can be said.

    Raises:
        BrokenZerosError: if zeros do not last.
    """
    with _quietly({p.device for group in site.param_groups for p in group["params"]}):
        for carry in (False, True):
            # With a state of their own, parameters cannot be made smaller.
            samples = _samples(site, least=carry)
            if not samples:
                return None
            for gradients in WAYS:
                trial = _trial(holders, site, samples, gradients, carry)
                if trial is None:
                    break
                try:
                    memory = trial.learn()
                    trial.check()
                except BrokenZerosError:
                    raise
                except Exception as error:
                    if _goes_on_without(_trial(holders, site, samples, gradients, carry, masking=False)):
                        raise BrokenZerosError(
                            f"it fails where weights are held at zero: {_first_line(error)}"
                        ) from error
                    continue
                return memory
    return None


def _goes_on_without(trial: Trial | None) -> bool:
    """Whether an optimizer takes the same steps where nothing is zero."""
    try:
        if trial is not None:
            trial.learn()
            trial.check()
    except Exception:  # whatever it is, it is not ours
        return False
    return trial is not None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _trial(
    holders: Sequence[Any],
    site: Optimizer,
    samples: Sequence[Tensor],
    gradients: str,
    carry: bool,
    *,
    masking: bool = True,
) -> Trial | None:
    stand_ins = {p: _stand_in(p, exact=carry) for p in samples}
    try:
        copied = copy_optimizer(holders[0], stand_ins, carry_state=carry)
        inside = nested(copied)
        for holder in inside:
            _let_move(holder, 1.0 if "closure" in gradients else 1e-3)
        return Trial(inside, inside[holders.index(site)], list(stand_ins.values()), gradients, carry, masking)
    except Exception:  # an object that is made in a way of its own
        return None


def _let_move(holder: Any, least: float) -> None:
    """Raise learning rates that are too small for a step to be seen, as at the start of a warm-up."""
    for group in getattr(holder, "param_groups", ()):
        if "lr" in group and float(group["lr"]) < least:
            group["lr"] = torch.full_like(group["lr"], least) if isinstance(group["lr"], Tensor) else least


def _samples(site: Optimizer, *, least: bool) -> list[Tensor]:
    """The largest parameter, or the smallest, of each number of dimensions and combination of options in words."""
    found: dict[tuple[Any, ...], Tensor] = {}
    for group in site.param_groups:
        options = tuple((k, v) for k, v in group.items() if isinstance(v, (bool, str, type(None))))
        for p in group["params"]:
            key = (options, p.ndim, p.dtype, p.device)
            if p.requires_grad and p.numel() > 1 and p.device.type != "meta":
                found[key] = (min if least else max)(found.get(key, p), p, key=Tensor.numel)
    return sorted(found.values(), key=lambda p: -p.ndim)[:_SAMPLES]


def _stand_in(parameter: Tensor, *, exact: bool) -> Tensor:
    """A parameter in the place of a large one; no two of its dimensions are equal, to tell its state from factors."""
    shape = list(parameter.shape)
    if exact:
        return torch.nn.Parameter(parameter.detach().clone())
    while torch.Size(shape).numel() > _LARGEST and max(shape) > 1:
        widest = shape.index(max(shape))
        shape[widest] = (shape[widest] + 1) // 2
    for i, size in enumerate(shape):
        while size in shape[:i]:
            size *= 2
        shape[i] = size
    return torch.nn.Parameter(torch.empty(shape, dtype=parameter.dtype, device=parameter.device))


@contextmanager
def _quietly(devices: set[torch.device]) -> Iterator[None]:
    """Leave random numbers as they were, say nothing, and compile nothing."""
    state = random.getstate()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([d for d in devices if d.type == "cuda"]))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.no_grad())
        try:
            yield
        finally:
            random.setstate(state)


def nested(holder: Any) -> list[Any]:
    """An optimizer or a wrapper of one, and all optimizers inside, from the outside in."""
    found: list[Any] = [holder]
    for inner in found:
        found += [o for o in held(inner) if not any(o is other for other in found)]
    return found


def held(holder: Any) -> list[Optimizer]:
    """The optimizers that an object holds as attributes, alone or in lists."""
    values: list[Any] = []
    for value in getattr(holder, "__dict__", {}).values():
        values += value if isinstance(value, (list, tuple)) else [value]
    return [v for v in values if isinstance(v, Optimizer)]
