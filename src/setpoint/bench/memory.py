"""How much memory methods and projections take beyond what is there without them."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from setpoint.bench.inputs import Weights, norms, resnet50
from setpoint.bench.peaks import Meter
from setpoint.bench.projection import SPARSITY
from setpoint.bench.resident import peak_resident
from setpoint.bench.training import Task, Training
from setpoint.bench.work import Row
from setpoint.functional import project_budget, project_gsp, prox_group_envelope

PARAMETERS, INPUT = "the parameters", "the input"
# Parts of a training whose peaks are told apart.
_REST, _BACKWARD, _STEP = "kept between steps", "backward", "in the optimizer's step"
_FREEZE, _FROZEN = "at the freeze", "frozen"
# Steps of each kind: there is no chance in them.
_TURNS = 2


def step_memory(task: Task, unit: str, methods: Sequence[str], device: torch.device) -> list[Row]:
    """Measure the peak of training with each method, beyond that of the dense model.

    Args:
        task: what is trained.
        unit: what becomes zero together.
        methods: by their short names.
        device: where.

    Returns:
        A row for each method: the peak of steps with an update, in the middle of the sparsify phase, less that of the
        dense model, as a multiple of the parameters' bytes. Its figures are differences of the same kind: of what is
        `kept between steps`, of the peak `in the optimizer's step` alone (which the activations of the forward pass may
        hide), `at the freeze`, and in a `frozen` step.
    """
    dense, whole = _peaks(task, None, unit, device)
    rows = []
    for name in methods:
        peaks, _ = _peaks(task, name, unit, device)
        beyond = {window: (peaks[window] - dense[window]) / whole for window in peaks}
        top, bottom = (max(p[_BACKWARD], p[_STEP]) for p in (peaks, dense))
        figures = {window: beyond[window] for window in (_REST, _STEP, _FREEZE, _FROZEN)}
        case = f"{task.title}, units: {unit}"
        rows.append(Row(case, f"{name}, beyond dense", (top - bottom) / whole, PARAMETERS, figures=figures))
    return rows


def _peaks(task: Task, method: str | None, unit: str, device: torch.device) -> tuple[dict[str, int], int]:
    """Peaks of the parts of a training, and the bytes of its parameters."""
    with Meter(device) as meter:
        training = Training(task, method, unit, device=device, updates=True, turns=_TURNS)
        training.optimizer.zero_grad()
        gc.collect()
        with meter.window(_REST):
            pass
        for _ in range(_TURNS):
            with meter.window(_BACKWARD):
                training.backward()
            with meter.window(_STEP):
                training.step()
        with meter.window(_FREEZE):
            training.freeze()
        for _ in range(_TURNS):  # the first estimates the statistics of batch norms anew
            with meter.window(_FROZEN):
                training.backward()
                training.step()
        whole = training.parameter_bytes
    return meter.peaks, whole


def projection_memory(device: torch.device, *, scale: float = 1.0, resident: bool = False) -> list[Row]:
    """Measure the peak of projections beyond their input, the answer included.

    Args:
        device: where.
        scale: of the number of weights.
        resident: measure the resident set of a process of its own as well, on a CPU: that knows of all memory, also of
            what is allocated outside of torch and of pages that are kept.

    Returns:
        Rows against the bytes of the input: `project_gsp` and `project_budget` on ResNet-50's weights, the envelope's
        map on the norms of 10^7 groups.
    """
    rows = []
    for name in _CALLS:
        case, size, call = _prepared(name, device, scale)
        with Meter(device) as meter, meter.window(name):
            answer = call()
            del answer
        figures = {}
        del call
        if resident and device.type == "cpu":
            found = peak_resident(partial(_call, name, scale))
            figures = {} if found is None else {"resident": found / size}
        rows.append(Row(case, name, meter.peaks.get(name, 0) / size, INPUT, figures=figures))
    return rows


def _gsp(weights: Weights) -> Any:
    return project_gsp(weights.vectors, SPARSITY)


def _gsp_in_place(weights: Weights) -> Any:
    return project_gsp(weights.vectors, SPARSITY, out=weights.vectors)


def _budget(weights: Weights) -> Any:
    return project_budget(weights.flat, round((1.0 - SPARSITY) * weights.count))


def _envelope(weights: Weights) -> Any:
    return prox_group_envelope(weights.flat, 0.1 * weights.count, 0.5, debias=True)


_CALLS = {
    "project_gsp, in place": _gsp_in_place,
    "project_gsp": _gsp,
    "project_budget": _budget,
    "prox_group_envelope": _envelope,
}


def _prepared(name: str, device: torch.device, scale: float) -> tuple[str, int, partial[Any]]:
    """On what, how many bytes of it, and the call."""
    if name == "prox_group_envelope":
        count = max(1, round(scale * 10**7))
        weights = Weights(f"norms of {count:,} groups", (norms(device, count),))
    else:
        weights = resnet50(device, scale=scale)
    if name == "project_budget":
        weights = Weights(weights.name, tuple(t.abs_() for t in weights.tensors))
    return weights.name, weights.bytes, partial(_CALLS[name], weights)


def _call(name: str, scale: float, smaller: float) -> partial[Any]:
    return _prepared(name, torch.device("cpu"), scale * smaller)[2]
