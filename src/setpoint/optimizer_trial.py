"""A trial of an optimizer on a few small tensors: what its state is made of, and whether zeros last under it.

Nothing is known of kinds of optimizers. A small copy of the user's takes a few steps on weights a part of which are
zero and get no gradient; what its state holds there is what a reset entry begins with, and what its state holds of the
other weights tells copies of them from the rest. Then zeros are made and held as in a run, and looked for after every
step and every change between `train()` and `eval()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from setpoint.entry_state import (
    Memory,
    Path,
    Slot,
    both,
    is_near,
    mask_gradient,
    reset,
    slot_key,
    slot_of,
    state_tensors,
)
from setpoint.functional.bits import Mask
from setpoint.optimizer_copy import copy_optimizer, let_move, nested, quietly, samples, stand_in

# Steps before and after the zeros are made: slow weights are blended back every fifth or tenth step.
_DENSE, _FROZEN = 6, 12
# Evaluations of a closure in one step: sharpness-aware optimizers take two, line searches any number.
_EVALUATIONS = 2
# Weights are far larger than a step, by which their copies differ.
_SIZE = 10.0


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
        moved: whether a step has moved a weight that had been zero since the cut.
    """

    holders: Sequence[Any]
    site: Optimizer
    weights: Sequence[Tensor]
    gradients: str
    carried: bool = False
    masking: bool = True
    moved: bool = False

    def __post_init__(self) -> None:
        self.memory = Memory(complete=True)
        self._generator = torch.Generator().manual_seed(0)
        self.gone = [self._entries(w) for w in self.weights]
        self._steps, self._evaluations, self._cut_next = 0, 0, False
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
                now[key] = now.get(key, False) or is_near(value, weight, gone)
        return {**now, **known}

    def check(self) -> None:
        """Make zeros, and look whether they last.

        Raises:
            BrokenZerosError: if they do not.
        """
        # As in a run, the cut is made within a step: a wrapper may hold what the weights were before.
        self._cut_next = True
        for step in range(_FROZEN):
            self._step()
            self._look("a step")
            if step == _FROZEN // 2:
                for mode in ("eval", "train"):
                    self._switch(mode)
                    self._look(f"{mode}()")
        if self._switch("eval"):
            self._cut()
            self._look("a cut in evaluation mode")
            self._switch("train")
            self._look("train()")
            self._step()
            self._look("a step")
            self._switch("eval")
            self._look("eval()")

    def _cut(self) -> None:
        self._cut_next = False
        self.gone = [gone | self._entries(w) for gone, w in zip(self.gone, self.weights)]
        for weight, gone in zip(self.weights, self.gone):
            weight.masked_fill_(gone, 0.0)
            reset(self.memory, self.holders, weight, gone)

    def _look(self, when: str) -> None:
        for weight, gone in zip(self.weights, self.gone):
            if bool(weight[gone].any()):
                raise BrokenZerosError(f"{when} of it brings weights back that were zero")

    def _switch(self, mode: str) -> bool:
        methods = [method for holder in self.holders if callable(method := getattr(holder, mode, None))]
        return bool([method() for method in methods])

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
            mask_gradient(weight, Mask.of(gone))

    def _after(self) -> None:
        self._steps += 1
        if self._cut_next:
            self._cut()
        elif self.memory.complete:
            self.moved = self.moved or any(bool(w[gone].any()) for w, gone in zip(self.weights, self.gone))
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
            slot = slot_of(value, gone, beside, "copy" if copies.get(key) else "own")
            slots[key] = slot if key not in slots else both(slots[key], slot)
        return slots


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
    with quietly({p.device for group in site.param_groups for p in group["params"]}):
        for carry in (False, True):
            # With a state of their own, parameters cannot be made smaller.
            chosen = samples(site, least=carry)
            if not chosen:
                return None
            for gradients in WAYS:
                make = partial(_trial, holders, site, chosen, gradients, carry)
                if (trial := make()) is None:
                    break
                try:
                    return _lasting(trial, make)
                except Exception as error:
                    if isinstance(error, BrokenZerosError):
                        raise
                    if _goes_on_without(make(masking=False)):
                        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                        raise BrokenZerosError(f"it fails where weights are held at zero: {first}") from error
    return None


def _lasting(trial: Trial, make: Callable[[], Trial | None]) -> Memory:
    """What a state is made of. Where masking the copies in it is not enough, all of it is masked at every step."""
    memory = trial.learn()
    try:
        trial.check()
    except BrokenZerosError:
        if (another := make()) is None:
            raise
        another.learn()
        memory = another.memory = memory.all_copies()
        another.check()
        trial = another
    # What keeps copies of the weights, or has modes to switch between, may bring them back at another time.
    simple = not memory.has_copies and not any(callable(getattr(h, "eval", None)) for h in trial.holders)
    return replace(memory, still=simple and trial.masking and not trial.moved)


def _goes_on_without(trial: Trial | None) -> bool:
    """Whether an optimizer takes the same steps where nothing is zero."""
    try:
        if trial is not None:
            trial.learn()
            trial.check()
    except Exception:  # whatever it is, it is not ours
        return False
    return trial is not None


def _trial(
    holders: Sequence[Any],
    site: Optimizer,
    chosen: Sequence[Tensor],
    gradients: str,
    carry: bool,
    *,
    masking: bool = True,
) -> Trial | None:
    stand_ins = {p: stand_in(p, exact=carry) for p in chosen}
    try:
        copied = copy_optimizer(holders[0], stand_ins, carry_state=carry)
        inside = nested(copied)
        for holder in inside:
            let_move(holder, 1.0 if "closure" in gradients else 1e-3)
        return Trial(inside, inside[holders.index(site)], list(stand_ins.values()), gradients, carry, masking)
    except Exception:  # an object that is made in a way of its own
        return None
