"""The plots of one run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from matplotlib.ticker import MaxNLocator

from setpoint.report_text import units_column
from setpoint.reporting.figures import (
    BLUE,
    COLORS,
    DENSE,
    INK,
    ORANGE,
    clean,
    new_figure,
    percent_axis,
    save_figure,
)
from setpoint.reporting.measures import MEASURES, Measure
from setpoint.reporting.words import percent

Rows = Sequence[Mapping[str, Any]]
Phase = tuple[str, float, float]

_PHASE_SHADES = {"dense": "#ffffff", "sparsify": "#fdf3e1", "frozen": "#e8f1f8"}
_GAUGE_COLORS = tuple(color for color in COLORS if color not in (BLUE, ORANGE))
# Columns of updates.csv that are no gauge of the method.
_COMMON = ("step", "asked", "zeros")


def training_plot(
    rows: Rows,
    path: Path,
    *,
    dense: Rows = (),
    updates: Rows = (),
    sparsify: tuple[int, int] | None = None,
    chosen: int | None = None,
    task: str = "classification",
    cost: str | None = None,
    title: str = "",
) -> None:
    """Draw how good the model is and its sparsity over the epochs, and below them the method's gauges if it has any.

    What the budget asks to go is drawn beside the zeros where it counts weights, and otherwise by itself.

    Args:
        rows: of metrics.csv, as mappings.
        path: of the PNG.
        dense: rows of the dense twin.
        updates: rows of updates.csv; without them, sparsity and phases are drawn by whole epochs.
        sparsify: steps at which the phase of the updates begins and ends; by default at the first and the last.
        chosen: epoch whose weights were chosen.
        task: of the run, which says what tells how good a model is.
        cost: what the budget counts, in words; None for the weights whose zeros are drawn.
        title: above the plot.
    """
    gauges = [key for key in updates[0] if key not in _COMMON] if updates else []
    ratios = [1.25, 1, *([0.7] if cost else []), *([0.9] if gauges else [])]
    figure = new_figure(7.5, 1.55 + 1.62 * sum(ratios) if len(ratios) > 2 else 5.2)
    panels = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    figure.suptitle(title, fontsize=11, color=INK)
    fine = _Fine.of(rows, updates, sparsify) if updates else None
    course = rows if fine is None else fine.sparsity(rows)
    _judged(panels[0], MEASURES[task], rows, dense, chosen)
    _sparsity(panels[1], course, asked=cost is None)
    if cost:
        _asked(panels[2], course, cost)
    if fine is not None and gauges:
        _gauges(panels[-1], fine.updates, gauges)
    last = max(len(rows), len(dense)) + 0.5
    _shade(panels, list(_phases(rows)) if fine is None else fine.phases(last))
    panels[-1].set_xlabel("epoch", fontsize=10)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set_xlim(0.5 if fine is None else 0.0, last)
    save_figure(figure, path)


@dataclass(frozen=True)
class _Fine:
    """The sparsify phase update by update, its steps told in epochs."""

    updates: Rows
    begin: float
    end: float

    @classmethod
    def of(cls, rows: Rows, updates: Rows, sparsify: tuple[int, int] | None) -> _Fine:
        steps = rows[-1]["step"] / rows[-1]["epoch"]
        begin, end = sparsify or (updates[0]["step"], updates[-1]["step"])
        return cls([{**row, "epoch": row["step"] / steps} for row in updates], begin / steps, end / steps)

    def sparsity(self, rows: Rows) -> Rows:
        """Rows to draw: nothing up to the first update, then each of them, and what the freeze left.

        An update before the first step is of a run that was sparse from the start.
        """
        asks = rows[-1]["requested"] is not None
        none = {"requested": 0.0 if asks else None, "sparsity": 0.0}
        updates = [
            {"epoch": row["epoch"], "requested": row["asked"] if asks else None, "sparsity": row["zeros"]}
            for row in self.updates
        ]
        frozen = [row for row in rows if row["phase"] == "frozen"]
        freeze = [{**row, "epoch": self.end} for row in frozen[:1]]
        start = [{**none, "epoch": 0.0}, {**none, "epoch": self.begin}] if self.updates[0]["step"] else []
        return [*start, *updates, *freeze, *frozen]

    def phases(self, last: float) -> list[Phase]:
        spans = (("dense", 0.0, self.begin), ("sparsify", self.begin, self.end), ("frozen", self.end, last))
        return [(phase, first, until) for phase, first, until in spans if first < until]


def _shade(panels: Sequence[Any], phases: Sequence[Phase]) -> None:
    for axes in panels:
        clean(axes)
        for phase, first, last in phases:
            axes.axvspan(first, last, color=_PHASE_SHADES[phase], zorder=0, linewidth=0)
    for phase, first, last in phases:
        panels[1].text((first + last) / 2, 1.1, phase, ha="center", va="center", fontsize=9, color=DENSE)


def _judged(axes: Any, measure: Measure, rows: Rows, dense: Rows, chosen: int | None) -> None:
    rows, dense = ([{**row, "figure": measure.of(row, "validation")} for row in each] for each in (rows, dense))
    if dense:
        axes.plot(*_series(dense, "figure"), color=DENSE, linewidth=1.4, linestyle="--", label="dense twin")
    axes.plot(*_series(rows, "figure"), color=BLUE, linewidth=1.8, label="sparse")
    if chosen is not None:
        figure = rows[chosen - 1]["figure"]
        label = f"chosen: {measure.words(figure)}"
        axes.plot([chosen], [figure], "o", color=BLUE, markersize=6, label=label, zorder=4)
    axes.set_ylabel(f"validation {measure.name}", fontsize=10)
    axes.set_ylim(*_figure_range([*rows, *dense], top=1.0 if measure.fraction else math.inf))
    if measure.fraction:
        percent_axis(axes.yaxis)
    # Where the curves are not: accuracies rise, losses fall.
    corner = "lower right" if measure.fraction else "upper right"
    axes.legend(loc=corner, fontsize=9, frameon=True, framealpha=0.9, edgecolor="none")


def _figure_range(rows: Rows, *, top: float) -> tuple[float, float]:
    """Leave out the first epochs, whose steep way would flatten all the rest."""
    late = max(row["epoch"] for row in rows) * 0.15
    values = [row["figure"] for row in rows if row["epoch"] > late and math.isfinite(row["figure"])]
    if not values:
        return 0.0, 1.0
    margin = max(0.08 * (max(values) - min(values)), 0.005)
    return max(0.0, min(values) - margin), min(top, max(values) + margin) + 0.001


def _sparsity(axes: Any, rows: Rows, *, asked: bool) -> None:
    known = [row for row in rows if row["requested"] is not None]
    if known and asked:
        axes.plot(*_series(known, "requested"), color=ORANGE, linewidth=3.5, alpha=0.6, label="asked for by now")
    axes.plot(*_series(rows, "sparsity"), color=INK, linewidth=1.4, label="zeros at the last update")
    axes.set_ylabel("sparsity" if asked else "zeros in weights", fontsize=10)
    axes.set_ylim(-0.02, 1.2)
    _fractions(axes)


def _asked(axes: Any, rows: Rows, cost: str) -> None:
    label = f"{cost} asked to go by now"
    known = [row for row in rows if row["requested"] is not None]
    axes.plot(*_series(known, "requested"), color=ORANGE, linewidth=3.5, alpha=0.6, label=label)
    axes.set_ylabel(f"{cost}\nasked to go", fontsize=10)
    axes.set_ylim(-0.02, 1.05)
    _fractions(axes)


def _fractions(axes: Any) -> None:
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    percent_axis(axes.yaxis, 0)
    axes.legend(loc="lower right", fontsize=9, frameon=True, framealpha=0.9, edgecolor="none")


def _gauges(axes: Any, updates: Rows, gauges: Sequence[str]) -> None:
    for gauge, color in zip(gauges, itertools.cycle(_GAUGE_COLORS)):
        axes.plot(*_series(updates, gauge), color=color, linewidth=1.4, label=gauge)
    values = [row[gauge] for row in updates for gauge in gauges if math.isfinite(row[gauge])]
    if values and min(values) > 0.0 and max(values) > 100.0 * min(values):
        axes.set_yscale("log")
    axes.set_ylabel("gauges", fontsize=10)
    axes.legend(loc="best", fontsize=9, frameon=True, framealpha=0.9, edgecolor="none")


def _series(rows: Rows, key: str) -> tuple[list[float], list[float]]:
    return [row["epoch"] for row in rows], [row[key] for row in rows]


def _phases(rows: Rows) -> Iterator[Phase]:
    """Each phase with the epochs that ended in it, half an epoch to either side."""
    for phase in ("dense", "sparsify", "frozen"):
        epochs = [row["epoch"] for row in rows if row["phase"] == phase]
        if epochs:
            yield phase, min(epochs) - 0.5, max(epochs) + 0.5


def layers_plot(layers: Rows, path: Path, *, unit: str = "weight", cost: str = "params", title: str = "") -> None:
    """Draw a bar for each layer, first layer on top: its zeros, or of units of several weights those that it keeps.

    Args:
        layers: of a report, as plain values.
        path: of the PNG.
        unit: what becomes zero together, as reports name it.
        cost: what the budget counts.
        title: above the plot.
    """
    figure = new_figure(7.5, 1.3 + 0.34 * len(layers))
    axes = figure.subplots()
    kind = _Units(cost) if units_column(unit) == "units kept" else _Zeros()
    axes.barh(range(len(layers)), [kind.length(layer) for layer in layers], color=BLUE, height=0.62)
    _mark([kind.mark(layer) for layer in layers], axes)
    for place, layer in enumerate(layers):
        axes.text(1.02, place, kind.label(layer), va="center", fontsize=8.5, color=INK)
    axes.set_yticks(range(len(layers)), [layer["name"] for layer in layers])
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel(kind.axis, fontsize=10)
    percent_axis(axes.xaxis, 0)
    clean(axes, grid="x")
    figure.suptitle(title, fontsize=11, color=INK)
    save_figure(figure, path)


class _Zeros:
    """Layers by the weights that went."""

    axis = "zeros"

    def length(self, layer: Mapping[str, Any]) -> float:
        return float(layer["sparsity"])

    def mark(self, layer: Mapping[str, Any]) -> float | None:
        return None if layer["requested"] is None else float(layer["requested"])

    def label(self, layer: Mapping[str, Any]) -> str:
        return f"{percent(layer['sparsity'])}   {layer['params_kept']:,} of {layer['params']:,} kept"


@dataclass(frozen=True)
class _Units:
    """Layers by the units that stay. Other costs than units are not marked on the same axis."""

    cost: str
    axis: ClassVar[str] = "units kept"

    def length(self, layer: Mapping[str, Any]) -> float:
        return float(layer["units_kept"] / layer["units"])

    def mark(self, layer: Mapping[str, Any]) -> float | None:
        return None if layer["requested"] is None or self.cost != "units" else 1.0 - layer["requested"]

    def label(self, layer: Mapping[str, Any]) -> str:
        return f"{percent(self.length(layer))}   {layer['units_kept']:,} of {layer['units']:,} units kept"


def _mark(values: Sequence[float | None], axes: Any) -> None:
    """Say what was asked for of each layer that has a budget of its own."""
    asked = [(place, value) for place, value in enumerate(values) if value is not None]
    if asked:
        places, lengths = zip(*asked)
        axes.plot(lengths, places, "|", color=ORANGE, markersize=14, markeredgewidth=2.5, label="asked for")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9, frameon=False)
