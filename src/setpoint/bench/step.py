"""What a method adds to the step of training, beside the dense step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from setpoint.bench.training import STEPS, Task, Training, default_interval
from setpoint.bench.work import Pace, Row
from setpoint.budget.timing import medians
from setpoint.methods import make_method

DENSE = "dense step"


@dataclass(frozen=True)
class _Times:
    """Milliseconds of the two parts of a step; of the first, None where it was not timed."""

    backward: float | None
    step: float

    @property
    def whole(self) -> float:
        return (self.backward or 0.0) + self.step


def step_overhead(
    task: Task,
    unit: str,
    methods: Sequence[str],
    device: torch.device,
    pace: Pace,
    *,
    steps: int = STEPS,
    whole: bool = True,
) -> list[Row]:
    """Time the steps of training with each method and without, in turns.

    Args:
        task: what is trained.
        unit: what becomes zero together.
        methods: by their short names.
        device: where.
        pace: how often.
        steps: of a run; from them follows how often a method makes an update by default.
        whole: time the forward and backward pass of every method, rather than of those that work there and the dense
            model's alone.

    Returns:
        A row for each method against the dense step: the mean step of the sparsify phase at the method's default
        interval. Its figures are the ratios of a step `between` updates, `with an update` (if it makes any) and
        `frozen`, and the mean step `as timed whole`, where it was. The other ratios, of a method that does not work in
        the forward and backward pass, are those of the optimizer's part on top of the dense model's forward and
        backward pass: both run the same code there, and its scatter is greater than what is measured.
    """

    turns = pace.repeats + max(1, pace.warm_up)

    def trainings(*, updates: bool) -> dict[str, Training]:
        made = {DENSE: Training(task, None, device=device)}
        for name in methods:
            made[name] = Training(task, name, unit, device=device, updates=updates, turns=turns)
        return made

    still = trainings(updates=False)
    between = _timed(still, device, pace, whole=whole)
    for training in still.values():
        training.freeze()
    # The first step, which warms up, estimates the statistics of batch norms anew.
    frozen = _timed(still, device, pace, whole=whole)
    del still
    updating = _timed(trainings(updates=True), device, pace, whole=whole)
    case = f"{task.title}, units: {unit}"
    phases = {"between": between, "with an update": updating, "frozen": frozen}
    return [_row(case, name, default_interval(name, steps), phases) for name in methods]


def _timed(trainings: Mapping[str, Training], device: torch.device, pace: Pace, *, whole: bool) -> dict[str, _Times]:
    works: list[tuple[str, Callable[[], object]]] = []
    for name, training in trainings.items():
        training.backward()
        if whole or _in_backward(name):
            works.append((name, training.backward))
        works.append((name, training.step))
    taken = medians(
        [work for _, work in works],
        device,
        repeats=pace.repeats,
        seconds=pace.seconds,
        warm_up=max(1, pace.warm_up),
    )
    times: dict[str, list[float]] = {}
    for (name, _), ms in zip(works, taken):
        times.setdefault(name, []).append(ms)
    return {name: _Times(each[0] if len(each) > 1 else None, each[-1]) for name, each in times.items()}


def _in_backward(name: str) -> bool:
    """Whether what goes by this name has to be timed in the forward and backward pass."""
    return name == DENSE or make_method(name).gated


def _row(case: str, name: str, interval: int | None, phases: Mapping[str, Mapping[str, _Times]]) -> Row:
    figures = {
        phase: _ratio(times[name], times[DENSE], whole=make_method(name).gated) for phase, times in phases.items()
    }
    ratio = _mean(figures, interval)
    shown = {phase: value for phase, value in figures.items() if interval or phase != "with an update"}
    if phases["between"][name].backward is not None:
        whole = {phase: _ratio(times[name], times[DENSE], whole=True) for phase, times in phases.items()}
        shown["as timed whole"] = _mean(whole, interval)
    how = f"an update every {interval} steps" if interval else "no updates"
    return Row(case, name, ratio, DENSE, phases["between"][DENSE].whole * ratio, shown, how)


def _ratio(times: _Times, dense: _Times, *, whole: bool) -> float:
    """Of a step to the dense step; by the optimizer's part of it unless it is to be the whole."""
    return times.whole / dense.whole if whole else 1.0 + (times.step - dense.step) / dense.whole


def _mean(ratios: Mapping[str, float], interval: int | None) -> float:
    if interval is None:
        return ratios["between"]
    return ratios["between"] + (ratios["with an update"] - ratios["between"]) / interval
