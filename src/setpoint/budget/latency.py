"""Latency of a model by its widths: measured operation by operation on the machine, checked on whole models."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from setpoint.budget.operations import operations_of
from setpoint.budget.tables import Table, tables_of
from setpoint.budget.timing import agreed, medians
from setpoint.inputs import call_arguments
from setpoint.wiring import Wiring

# Seconds for one measurement of a whole model.
_SECONDS = 1.0
# Sums as near to one another as this are of models that take the same time: the newer measurement holds.
_SAME = 0.01
# How often a cut is made anew, and how near to the limit is near enough.
_CUTS, _CLOSE = 6, 0.98


class LatencyOfWidths:
    """The latency of a forward pass in milliseconds by the number of units that stay in each group.

    Every operation of the pass is timed alone at a grid of widths; between the nodes it is interpolated. The sum leaves
    out what happens between operations, so it is mapped, by lines between points, to the latencies of whole models: of
    the full one, of one of half the widths, of the narrowest, and later of those that a budget leaves (`settle`). Times
    that fall where a width grows are raised to those of the smaller width: a unit more never costs less.

    Args:
        model: deep-copied on the meta device; may change its weights, not its sizes.
        wiring: its axes.
        groups: names of the groups whose widths change, in the order in which widths are given.
        example_inputs: what one forward pass is; its batch counts.
        device: where it is measured; the model's own by default.

    Attributes:
        device: where it is measured.
        measured: milliseconds of the model that the last settled cut left; None before.

    Raises:
        ValueError: for a device that is not there, and for a model that runs other operations at other widths.
    """

    def __init__(
        self,
        model: nn.Module,
        wiring: Wiring,
        groups: Sequence[str],
        example_inputs: Any,
        device: str | torch.device | None = None,
    ) -> None:
        self._wiring, self._groups = wiring, tuple(groups)
        self._full = tuple(wiring[name].size for name in groups)
        self.device = _device(model, device)
        self.measured: float | None = None
        self._inputs = _pytree.tree_map_only(Tensor, lambda t: t.detach().to(self.device), example_inputs)
        self._twin = copy.deepcopy(model).to("meta").eval()
        here = copy.deepcopy(model).to(self.device).eval()
        self._tables = tables_of(
            operations_of(here, wiring, groups, self._inputs), self._widths(self._full), self.device
        )
        # Sums of the tables and latencies of whole models, ascending in both; the full model's is always the last.
        self._points: list[tuple[float, float]] = []
        some = [self._full, tuple(-(-n // 2) for n in self._full), (1,) * len(self._full)]
        for widths, taken in zip(some, self._measured(*some)):
            self._note(widths, taken)

    def __call__(self, widths: Sequence[int]) -> float:
        """Milliseconds at these widths, in the order of the groups."""
        return _on_lines(self._points, self._sum(widths))

    def settle(self, cut: Callable[[], Sequence[Tensor]], limit: float) -> Sequence[Tensor]:
        """Measure the model that a cut leaves, learn from it and cut anew, until it takes as long as it may.

        Args:
            cut: which units stay by what is known now: boolean tensors, one for each group.
            limit: milliseconds.

        Returns:
            The cut whose model comes nearest to the limit from below, or the last one if all were above. The latencies
            told from now on are those that this cut was made with.
        """
        tried: list[tuple[bool, float, list[tuple[float, float]], Sequence[Tensor]]] = []
        last: list[int] = []
        for _ in range(_CUTS):
            points = list(self._points)
            try:
                kept = cut()
            except ValueError:
                # After what was measured, not even the fewest units fit.
                if not tried:
                    raise
                break
            widths = [int(k.sum()) for k in kept]
            if widths == last:
                break
            last, taken = widths, self._observe(widths)
            tried.append((taken <= limit, taken, points, kept))
            if _CLOSE * limit <= taken <= limit:
                break
        _, self.measured, self._points, kept = max(tried, key=lambda t: (t[0], t[1] if t[0] else -t[1]))
        return kept

    def _observe(self, widths: Sequence[int]) -> float:
        """The latency of a model of these widths, to which those told from now on are fitted."""
        dense, taken = self._measured(self._full, widths)
        # The machine may be slower or faster than when the limit was set: what counts is the ratio to the full model.
        taken *= self(self._full) / dense
        self._note(widths, taken)
        return taken

    def _note(self, widths: Sequence[int], taken: float) -> None:
        """Let the latencies told from now on pass through that of a model, except where it takes longer than a larger
        one."""
        at = self._sum(widths)
        if self._points and at >= self._points[-1][0]:
            return
        others = [(x, y) for x, y in self._points if abs(x - at) > _SAME * at or x == self._points[-1][0]]
        points, highest = [], 0.0
        for x, y in sorted([*others, (at, taken)]):
            highest = max(highest, y)
            points.append((x, highest if not self._points else min(highest, self._points[-1][1])))
        self._points = points

    def state_dict(self) -> dict[str, Any]:
        """What was measured, as plain numbers."""
        return {
            "measured": self.measured,
            "points": [list(point) for point in self._points],
            "tables": [[list(map(list, table.nodes)), table.values] for table in self._tables],
        }

    def check_state(self, state: object) -> None:
        """Refuse what is no such state.

        Raises:
            ValueError: if it does not have what was measured of these operations.
        """
        try:
            self._read(state)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the state of a run is damaged: its 'latency' must be what was measured of the model's "
                f"{len(self._tables)} operation(s)"
            ) from error

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what was measured, so that a run that goes on makes the choices that it would have made."""
        self.measured, self._points, self._tables = self._read(state)

    def _read(self, state: Any) -> tuple[float | None, list[tuple[float, float]], tuple[Table, ...]]:
        points = [(float(x), float(y)) for x, y in state["points"]]
        tables = tuple(
            Table(table.sizes, tuple(map(tuple, nodes)), values)
            for table, (nodes, values) in zip(self._tables, state["tables"], strict=True)
        )
        return None if state["measured"] is None else float(state["measured"]), points, tables

    def _widths(self, widths: Sequence[int]) -> dict[str, int]:
        return dict(zip(self._groups, widths))

    def _sum(self, widths: Sequence[int]) -> float:
        by_name = self._widths(widths)
        return sum(table.at(by_name) for table in self._tables)

    def _measured(self, *several: Sequence[int]) -> list[float]:
        """Latencies of models of some widths, timed in turns."""
        models = [self._model(widths) for widths in several]
        args, kwargs = call_arguments(self._inputs)
        with torch.no_grad():
            works = [lambda model=model: model(*args, **kwargs) for model in models]
            return agreed(medians(works, self.device, seconds=_SECONDS), self.device)

    def _model(self, widths: Sequence[int]) -> nn.Module:
        model = copy.deepcopy(self._twin)
        self._wiring.resize(model, {name: torch.arange(n) for name, n in self._widths(widths).items()})
        model.to_empty(device=self.device)
        for tensor in (*model.parameters(), *model.buffers()):
            _fill(tensor)
        return model


def _fill(tensor: Tensor) -> None:
    """Numbers of an ordinary size: the time of a pass may depend on them if they are denormal or not finite."""
    if tensor.is_floating_point():
        tensor.detach().copy_(torch.rand(tensor.shape) * 0.1 + 0.01)
    else:
        tensor.detach().zero_()


def _device(model: nn.Module, device: str | torch.device | None) -> torch.device:
    if device is None:
        return next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"latency was to be measured on device {device!r}, which is not there: {error}") from error
    return found


def _on_lines(points: Sequence[tuple[float, float]], at: float) -> float:
    """The height at `at` of the lines through some points; below the first one the line goes on."""
    if len(points) == 1:
        return points[0][1]
    right = min(max(bisect_right(points, (at, float("inf"))), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    # From the right, so that the full model's latency, at the last point, comes out to the bit: limits are parts of it.
    return max(y1 - (y1 - y0) * (x1 - at) / (x1 - x0), 0.0)
