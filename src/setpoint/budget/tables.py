"""Times of operations by their sizes, measured at a grid of widths."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from setpoint.budget.operations import Operation, Size
from setpoint.budget.timing import agreed, medians

logger = logging.getLogger(__name__)

# Where the tables have their nodes, as fractions of the full widths; at 0 a single unit is left.
_NODES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
# Seconds for one node.
_SECONDS = 0.02


@dataclass(frozen=True)
class Table:
    """Milliseconds at the nodes of one or two sizes; between the nodes linear in each.

    Attributes:
        sizes: which the time depends on.
        nodes: of each size, ascending.
        values: at the nodes, nested as the sizes are.
    """

    sizes: tuple[Size, ...]
    nodes: tuple[tuple[int, ...], ...]
    values: Any

    def at(self, widths: Mapping[str, int]) -> float:
        """The time at the widths of the groups."""
        return _interpolate(self.values, self.nodes, [size.at(widths) for size in self.sizes])


def tables_of(operations: Sequence[Operation], full: Mapping[str, int], device: torch.device) -> tuple[Table, ...]:
    """Times of the operations, those of the same sizes added up; what follows no width is left to the constant."""
    grouped: dict[tuple[Size, ...], list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.sizes:
            grouped[operation.sizes].append(operation)
    known: dict[Any, float] = {}
    tables = []
    for number, (sizes, members) in enumerate(grouped.items(), 1):
        logger.info("measuring operations: %d of %d", number, len(grouped))
        nodes = tuple(_nodes(size, full) for size in sizes)
        if len(sizes) > 2:
            # Too many for a grid: all in step, as a function of the size that varies most.
            tables.append(_diagonal(sizes, nodes, members, device, known))
            continue
        points = list(product(*nodes))
        times = agreed([sum(_time(m.at(dict(zip(sizes, p))), device, known) for m in members) for p in points], device)
        tables.append(Table(sizes, nodes, _rising(_nested(times, [len(n) for n in nodes]))))
    return tuple(tables)


def _diagonal(
    sizes: tuple[Size, ...],
    nodes: tuple[tuple[int, ...], ...],
    members: Sequence[Operation],
    device: torch.device,
    known: dict[Any, float],
) -> Table:
    steps = max(len(n) for n in nodes)
    at = [[n[min(len(n) * i // steps, len(n) - 1)] for n in nodes] for i in range(steps)]
    times = agreed([sum(_time(m.at(dict(zip(sizes, p))), device, known) for m in members) for p in at], device)
    slopes: dict[str, int] = defaultdict(int)
    for size in sizes:
        for name, slope in size.slopes:
            slopes[name] += slope
    total = Size(sum(size.constant for size in sizes), tuple(slopes.items()))
    return Table((total,), (tuple(sum(point) for point in at),), _rising(times))


def _nodes(size: Size, full: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sorted({size.at({name: max(1, round(n * f)) for name, n in full.items()}) for f in _NODES}))


def _time(operation: Operation, device: torch.device, known: dict[Any, float]) -> float:
    key = (operation.function, repr(operation.leaves))
    if key not in known:
        try:
            with torch.no_grad():
                known[key] = medians([operation.work(device)], device, repeats=10, seconds=_SECONDS, warm_up=1)[0]
        except (RuntimeError, IndexError, ValueError):
            # Not to be run on tensors made up for it: left to the fit with whole models.
            known[key] = 0.0
    return known[key]


def _nested(values: Sequence[float], shape: Sequence[int]) -> Any:
    if len(shape) == 1:
        return list(values)
    each = len(values) // shape[0]
    return [_nested(values[i * each : (i + 1) * each], shape[1:]) for i in range(shape[0])]


def _rising(values: Any) -> Any:
    """The same, nowhere below what it is at smaller sizes."""
    table = torch.tensor(values, dtype=torch.float64)
    for axis in range(table.ndim):
        table = table.cummax(axis).values
    return table.tolist()


def _interpolate(values: Any, nodes: Sequence[tuple[int, ...]], at: Sequence[int]) -> float:
    if not nodes:
        return float(values)
    ours, rest = nodes[0], nodes[1:]
    if len(ours) == 1:
        return _interpolate(values[0], rest, at[1:])
    left = min(max(bisect_right(ours, at[0]) - 1, 0), len(ours) - 2)
    share = (at[0] - ours[left]) / (ours[left + 1] - ours[left])
    low, high = (_interpolate(values[left + i], rest, at[1:]) for i in (0, 1))
    return low + share * (high - low)
