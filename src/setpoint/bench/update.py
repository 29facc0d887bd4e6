"""What a method adds to an optimizer step of a model that is mostly weights, in passes over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.optim import SGD

from setpoint.bench.references import PASS, one_pass
from setpoint.bench.resident import peak_resident
from setpoint.bench.stack import Gradients, Stack, fill
from setpoint.bench.work import Pace, Row
from setpoint.budget.timing import medians
from setpoint.methods import make_method
from setpoint.sparsifier import Sparsifier

SPARSITY = 0.9
# Of the figures of a row.
UPDATE, BETWEEN, FROZEN, DENSE, PEAK = "with an update", "between", "frozen", "dense step", "resident"
# Untimed updates before the first that counts, and as many steps of the phase after the last.
_LEAD = 3
# Of a batch, where there is a forward and backward pass.
_ROWS = 2
# In a process whose memory is measured: there is no chance in them.
_TURNS = 2
# Of the layers of a first call there: compiled kernels take over at 2^20 entries.
_WARM_WIDTH = 1200
_CPU = torch.device("cpu")


def update_cost(
    stack: Stack, unit: str, methods: Sequence[str], pace: Pace, *, sparsity: float = SPARSITY, resident: bool = False
) -> list[Row]:
    """Time optimizer steps with each method and without, in turns, on gradients that are set by hand.

    Args:
        stack: the model.
        unit: what becomes zero together.
        methods: by their short names.
        pace: how often.
        sparsity: the target.
        resident: measure the memory as well, each method's in a process of its own.

    Returns:
        A row for each method, of what it adds to the step of SGD, in passes: the ratio is that of a step with an
        update, or of any step if the method makes none. Figures are those of a step `with an update`, `between` two
        updates and in the `frozen` phase, the `dense step` itself, and by how much the `resident` set rises beyond that
        of dense steps, updates and the freeze included, as a multiple of the weights' bytes. Of a method with gates,
        which works in the forward and backward pass, these are of whole steps of training on two rows.
    """
    return [_row(stack, unit, method, pace, sparsity, resident=resident) for method in methods]


def _row(stack: Stack, unit: str, method: str, pace: Pace, sparsity: float, *, resident: bool) -> Row:
    figures, milliseconds = _times(stack, unit, method, pace, sparsity)
    ratio = figures.get(UPDATE, figures[BETWEEN])
    if resident:
        peak = update_peak(stack, unit, method, sparsity=sparsity)
        figures |= {} if peak is None else {PEAK: peak}
    note = "of whole steps, forward and backward pass included" if make_method(method).gated else ""
    return Row(f"{stack.title}, units: {unit}", method, ratio, PASS, milliseconds * ratio, figures, note)


def _times(stack: Stack, unit: str, method: str, pace: Pace, sparsity: float) -> tuple[dict[str, float], float]:
    """Passes by phase, and the milliseconds of one."""
    turns = pace.repeats + max(1, pace.warm_up)
    model = stack.build()
    flat = [parameter.detach().view(-1) for parameter in model.parameters()]
    figures: dict[str, float] = {}
    dense, passes = [], []

    def note(phase: str, times: Mapping[str, float]) -> None:
        figures[phase] = (times["step"] - times[DENSE]) / times[PASS]
        dense.append(times[DENSE] / times[PASS])
        passes.append(times[PASS])

    training = StackTraining(stack, model, method, unit, sparsity, updates=False, turns=turns)
    note(BETWEEN, _timed(training, partial(one_pass, flat), pace))
    if training.moves:
        training.remove()
        fill(model)
        training = StackTraining(stack, model, method, unit, sparsity, updates=True, turns=turns)
        note(UPDATE, _timed(training, partial(one_pass, flat), pace))
    training.freeze()
    note(FROZEN, _timed(training, partial(one_pass, flat), pace))
    training.remove()
    figures[DENSE] = sum(dense) / len(dense)
    order = [phase for phase in (UPDATE, BETWEEN, FROZEN, DENSE) if phase in figures]
    return {phase: figures[phase] for phase in order}, sum(passes) / len(passes)


def _timed(training: StackTraining, pass_over: Callable[[], object], pace: Pace) -> dict[str, float]:
    """Milliseconds of a pass, of a dense step and of a step with the method."""
    parts = training.parts
    calls = [pass_over, *(call for _, call in parts)]
    taken = medians(calls, _CPU, repeats=pace.repeats, seconds=pace.seconds, warm_up=max(1, pace.warm_up))
    times = {PASS: taken[0], DENSE: 0.0, "step": 0.0}
    for (name, _), milliseconds in zip(parts, taken[1:]):
        if name is not None:
            times[name] += milliseconds
    return times


def update_peak(stack: Stack, unit: str, method: str, *, sparsity: float = SPARSITY) -> float | None:
    """Measure how far training with a method raises the resident set, beyond dense steps of the same kind.

    Both run in a process of their own. With the method: its beginning, updates, the freeze and frozen steps.

    Returns:
        A multiple of the weights' bytes; None where the system does not tell.
    """
    backward = make_method(method).gated
    found = peak_resident(partial(_steps_with, stack, unit, method, sparsity))
    dense = peak_resident(partial(_steps_dense, stack, backward))
    return None if found is None or dense is None else (found - dense) / stack.bytes


def _steps_with(stack: Stack, unit: str, method: str, sparsity: float, scale: float) -> Callable[[], object]:
    stack = _sized(stack, scale)
    model = stack.build()

    def steps() -> object:
        training = StackTraining(stack, model, method, unit, sparsity, updates=True, turns=_TURNS)
        training.take(_TURNS)
        training.freeze()
        training.take(_TURNS)
        return training

    return steps


def _steps_dense(stack: Stack, backward: bool, scale: float) -> Callable[[], object]:
    stack = _sized(stack, scale)
    model = stack.build()

    def steps() -> object:
        training = StackTraining(stack, model, None, "", 0.0, updates=False, turns=_TURNS)
        training.take(_TURNS, backward=backward)
        return training

    return steps


def _sized(stack: Stack, scale: float) -> Stack:
    """The stack, or for a first call one that is small and yet large enough for all kernels."""
    return stack if scale == 1.0 else Stack(min(stack.layers, 2), min(stack.width, _WARM_WIDTH))


class StackTraining:
    """A stack in training with a method, in the midst of its sparsify phase, and the same stack without it.

    The dense step is that of an optimizer with a learning rate of zero on the same weights and gradients: it reads and
    writes all that another would, takes no memory, and changes nothing.

    Args:
        stack: the model's sizes.
        model: as it was built.
        method: by its short name, or None for a dense model.
        unit: what becomes zero together.
        sparsity: the target.
        updates: whether the method makes an update at every step, or none within the steps that are left.
        turns: how many steps will be taken before the phase ends, at least.
    """

    def __init__(
        self,
        stack: Stack,
        model: nn.Sequential,
        method: str | None,
        unit: str,
        sparsity: float,
        *,
        updates: bool,
        turns: int,
    ) -> None:
        self.model = model
        self._inputs = stack.inputs(_ROWS)
        self._gradients = Gradients(model)
        self._idle = SGD(model.parameters(), lr=0.0)
        self._optimizer = SGD(model.parameters(), lr=1e-3)
        # Reads the same weights, but not through what a method hangs on the model.
        self._twin = _twin(model)
        self.sparsifier: Sparsifier | None = None
        if method is not None:
            interval, lead, end = (1, _LEAD, turns + 2 * _LEAD) if updates else (turns + 2, turns + 3, 2 * (turns + 2))
            schedule = replace(make_method(method).schedule, begin=0, end=end, interval=interval)
            self.sparsifier = Sparsifier(
                model, self._optimizer, method=method, target=sparsity, unit=unit, steps=2 * end, schedule=schedule
            )
            for _ in range(lead):
                self._gradients.fill()
                self._optimizer.step()

    @property
    def gated(self) -> bool:
        """Whether the method works in the forward and backward pass."""
        return self.sparsifier is not None and self.sparsifier.method.gated

    @property
    def moves(self) -> bool:
        """Whether the method makes updates at all."""
        line = None if self.sparsifier is None else self.sparsifier.timeline
        return line is not None and line.interval < line.end - line.begin

    @property
    def parts(self) -> list[tuple[str | None, Callable[[], object]]]:
        """What is done in turns, and whether it belongs to the dense step, to that with the method, or to neither."""
        dense, step = (DENSE, self._idle.step), ("step", self._optimizer.step)
        if self.gated:
            return [
                (DENSE, partial(self.backward, self._twin)),
                dense,
                ("step", partial(self.backward, self.model)),
                step,
            ]
        return [(None, self._gradients.fill), dense, step]

    def backward(self, model: nn.Module) -> None:
        """Add the gradients of a batch to those that are there."""
        torch.autograd.backward(model(self._inputs).mean())

    def take(self, steps: int, *, backward: bool = False) -> None:
        """Take steps, with forward and backward passes where the method works there or it is asked for."""
        for _ in range(steps):
            if self.gated or backward:
                self.backward(self.model)
            else:
                self._gradients.fill()
            self._optimizer.step()

    def freeze(self) -> None:
        """End the sparsify phase."""
        if self.sparsifier is not None:
            self.sparsifier.freeze()

    def remove(self) -> None:
        """Take the method off."""
        if self.sparsifier is not None:
            self.sparsifier.remove()
            self.sparsifier = None


def _twin(model: nn.Sequential) -> nn.Sequential:
    """Other modules with the same parameters."""
    twins = [nn.Linear(1, 1, bias=False) for _ in model]
    for twin, parameter in zip(twins, model.parameters()):
        twin.weight = parameter
    return nn.Sequential(*twins)
