"""The short form of the benchmarks: one of each kind, in about a minute together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from setpoint.bench.envelope import envelope
from setpoint.bench.inputs import resnet50
from setpoint.bench.memory import projection_memory, step_memory
from setpoint.bench.projection import multiplier, projection
from setpoint.bench.scaling import at_size, slopes
from setpoint.bench.stack import Stack
from setpoint.bench.step import step_overhead
from setpoint.bench.training import RESNET20, Task
from setpoint.bench.update import update_cost
from setpoint.bench.work import Pace, Row
from setpoint.methods import method_names

# Of ResNet-50's weights, and so of all sizes here.
SCALE = 0.25
_PACE = Pace(repeats=3, seconds=5.0)
# At a scale of one.
_GROUPS = (4 * 10**5, 4 * 10**6)
_SIZES = (4 * 10**4, 4 * 10**5, 4 * 10**6, 4 * 10**7)
_STACK = Stack(4, 2048)
# One that multiplies, one that projects, one that moves its support, and one that works at every step.
_UPDATING = ("magnitude", "gsp", "rigl", "l0")
# Peaks beyond the dense model's depend on activations only in what these hide; few examples hide least.
_BATCH = 4


def short(part: str, device: torch.device, *, scale: float = SCALE) -> Iterator[list[Row]]:
    """Measure one part, or `"all"`.

    Args:
        part: one of `PARTS`, or `"all"`.
        device: where.
        scale: of the sizes; 1 is the whole of ResNet-50's weights, and ResNet-20 is as wide as it is from 0.25 on.

    Yields:
        The rows of one case after another.

    Raises:
        ValueError: for a scale that is not in (0, 4].
    """
    if not 0.0 < scale <= 4.0:
        raise ValueError(f"scale={scale} was asked for; above 0 and up to 4 is possible")
    for name, measure in PARTS.items():
        if part in (name, "all"):
            yield from measure(device, scale)


def _projection(device: torch.device, scale: float) -> Iterator[list[Row]]:
    yield projection(resnet50(device, scale=scale), _PACE, sort=False)
    for groups in _GROUPS:
        yield envelope(max(10, round(scale * groups)), device, _PACE)
    yield multiplier(replace(_PACE, repeats=100))


def _step(device: torch.device, scale: float) -> Iterator[list[Row]]:
    task = _task(scale, max(2, round(RESNET20.batch * min(1.0, scale / SCALE))))
    yield step_overhead(task, "weight", method_names(), device, _PACE, whole=False)


def _task(scale: float, batch: int) -> Task:
    """ResNet-20, narrower below the usual scale, but not so narrow that a tenth of it could not hold every layer."""
    return replace(RESNET20, width=min(1.0, max(0.25, scale / SCALE)), batch=batch)


def _memory(device: torch.device, scale: float) -> Iterator[list[Row]]:
    yield step_memory(_task(scale, _BATCH), "weight", method_names(), device)
    yield projection_memory(device, scale=scale)


def _scaling(device: torch.device, scale: float) -> Iterator[list[Row]]:
    sizes = [max(10 * 2**i, round(scale * size)) for i, size in enumerate(_SIZES)]
    rows = [at_size(size, device, _PACE, sort=False) for size in sizes]
    yield from rows
    yield slopes(sizes, rows)


def _update(device: torch.device, scale: float) -> Iterator[list[Row]]:
    if device.type == "cpu":
        for unit in ("weight", "row"):
            yield update_cost(_STACK.scaled(scale), unit, _UPDATING, _PACE)


PARTS: dict[str, Callable[[torch.device, float], Iterator[list[Row]]]] = {
    "projection": _projection,
    "step": _step,
    "update": _update,
    "memory": _memory,
    "scaling": _scaling,
}
