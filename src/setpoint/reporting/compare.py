"""Several runs side by side: how good they are against their sparsity, seeds taken together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich import box
from rich.table import Table

from setpoint.reporting.figures import COLORS, DENSE, INK, MARKERS, clean, new_figure, percent_axis, save_figure
from setpoint.reporting.measures import MEASURES, Measure
from setpoint.reporting.tables import asked
from setpoint.reporting.words import percent, size

Run = Mapping[str, Any]

# What tells runs of one method apart, where they differ in it.
_TRAITS = (
    "data",
    "model",
    "width",
    "options",
    "transform",
    "transform_sparsity",
    "transform_inner",
    "unit",
    "scope",
    "cost",
    "epochs",
    "context",
)

# Of sparsities on an axis.
_LEAST_RANGE = 0.1


@dataclass(frozen=True)
class Spread:
    """One figure over the seeds of a group."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(fmean(values), min(values), max(values))

    def words(self, measure: Measure) -> str:
        """The mean, and below it the least and the greatest where there are several."""
        if self.low == self.high:
            return measure.words(self.mean)
        # Below it: the rows fit a terminal of 80 columns.
        return f"{measure.words(self.mean)}\n({measure.number(self.low)}-{measure.number(self.high)})"


@dataclass(frozen=True)
class RunGroup:
    """Runs that were asked for the same, and differ in the seed alone.

    Attributes:
        label: method, and what else tells it from the others compared.
        asked: what was asked for, in words.
        runs: how many.
        sparsity: zeros in the sparse layers.
        measure: what tells how good the models are.
        test: the figure on the test examples.
        dense: that of the dense twins; None where there are none.
        bytes: mean size of the model's file.
    """

    label: str
    asked: str
    runs: int
    sparsity: Spread
    measure: Measure
    test: Spread
    dense: Spread | None
    bytes: int


def group_runs(runs: Sequence[Run]) -> list[RunGroup]:
    """Put together the runs that differ in the seed alone, in the order of their labels and sparsities.

    Args:
        runs: the contents of their report.json files.

    Raises:
        ValueError: if their tasks differ.
    """
    tasks = sorted({run["task"] for run in runs})
    if len(tasks) > 1:
        raise ValueError(f"runs of one task can be compared; these are of {' and '.join(tasks)}")
    traits = [name for name in _TRAITS if len({str(_config(run)[name]) for run in runs}) > 1]
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        # Weights are what is asked for unless something else is said.
        groups[_label(run, traits), asked(run).removesuffix(" of the weights")].append(run)
    found = [_group(label, wanted, members) for (label, wanted), members in groups.items()]
    return sorted(found, key=lambda group: (group.label, group.sparsity.mean))


def _config(run: Run) -> dict[str, Any]:
    """Of a run, which may be from before there were transformations."""
    return {"transform": "none", "transform_sparsity": 0.75, "transform_inner": "linear", **run["config"]}


def _label(run: Run, traits: Sequence[str]) -> str:
    config = _config(run)
    about = [f"{key}={value}" for key, value in config["options"].items()] if "options" in traits else []
    about += [f"{name} {_trait(config[name])}" for name in traits if name != "options"]
    return ", ".join([str(config["method"]), *about])


def _trait(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{glob}={sparsity:g}" for glob, sparsity in value.items())
    return Path(value).name if isinstance(value, str) else f"{value:g}"


def _group(label: str, wanted: str, members: Sequence[Run]) -> RunGroup:
    measure = MEASURES[members[0]["task"]]
    test, dense = (
        [figure for run in members if (figure := measure.of(run, split)) is not None]
        for split in ("test", "dense_test")
    )
    return RunGroup(
        label,
        wanted,
        len(members),
        Spread.of([run["report"]["sparsity"] for run in members]),
        measure,
        Spread.of(test),
        Spread.of(dense) if dense else None,
        round(fmean(run["bytes"] for run in members)),
    )


def compare_table(groups: Sequence[RunGroup]) -> Table:
    """Show groups of runs of one task, one a row; over several seeds the mean, with the least and the greatest."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", min_width=10, overflow="fold")
    table.add_column("asked")
    measure = groups[0].measure
    for name in ("runs", "zeros", measure.name, "dense", measure.step, "on disk"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        twin = group.dense
        dense = "-" if twin is None else measure.words(twin.mean)
        difference = "-" if twin is None else measure.difference(group.test.mean - twin.mean)
        figures = (percent(group.sparsity.mean), group.test.words(measure), dense, difference, size(group.bytes))
        table.add_row(group.label, group.asked, str(group.runs), *figures)
    return table


def compare_plot(
    groups: Sequence[RunGroup],
    path: Path,
    *,
    dashed: Collection[str] = (),
    xlabel: str = "sparsity (zeros in the sparse layers)",
) -> None:
    """Draw the test figures against sparsity: a line a label, bars from the least to the greatest of the seeds.

    Args:
        groups: what to draw.
        path: of the PNG.
        dashed: labels of baselines, drawn in black and dashed.
        xlabel: what the groups' sparsity counts.
    """
    figure = new_figure(7.5, 4.6)
    axes = figure.subplots()
    labels = sorted({group.label for group in groups}, key=lambda label: (label in dashed, label))
    solid = sum(label not in dashed for label in labels)
    for index, label in enumerate(labels):
        style = _solid(index) if index < solid else _dashed(index - solid)
        _draw_line(axes, [group for group in groups if group.label == label], style)
    _draw_dense(axes, groups)
    axes.set_xlabel(xlabel, fontsize=10)
    measure = groups[0].measure
    axes.set_ylabel(f"test {measure.name}", fontsize=10)
    percent_axis(axes.xaxis)
    if measure.fraction:
        percent_axis(axes.yaxis)
    axes.margins(x=0.08, y=0.12)
    _widen(axes)
    clean(axes)
    figure.legend(loc="outside lower center", ncols=min(3, len(labels) + 1), fontsize=9, frameon=False, labelcolor=INK)
    save_figure(figure, path)


def _widen(axes: Any) -> None:
    """Groups that were asked for the same differ by less than a unit: they are not to look far apart."""
    low, high = axes.get_xlim()
    if high - low < _LEAST_RANGE:
        middle = min(max(0.5 * (low + high), 0.5 * _LEAST_RANGE), 1.0 - 0.5 * _LEAST_RANGE)
        axes.set_xlim(middle - 0.5 * _LEAST_RANGE, middle + 0.5 * _LEAST_RANGE)


def _solid(index: int) -> dict[str, Any]:
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)], "linestyle": "-"}


def _dashed(index: int) -> dict[str, Any]:
    # From the last marker backwards, so that few lines share one with a method.
    return {"color": INK, "marker": MARKERS[-1 - index % len(MARKERS)], "linestyle": "--"}


def _draw_line(axes: Any, groups: Sequence[RunGroup], style: Mapping[str, Any]) -> None:
    means = [group.test.mean for group in groups]
    below = [group.test.mean - group.test.low for group in groups]
    above = [group.test.high - group.test.mean for group in groups]
    axes.errorbar(
        [group.sparsity.mean for group in groups],
        means,
        yerr=[below, above],
        label=groups[0].label,
        markersize=6,
        linewidth=1.6,
        elinewidth=1.2,
        capsize=3,
        **style,
    )


def _draw_dense(axes: Any, groups: Sequence[RunGroup]) -> None:
    """The twins of all groups as one line: with several models or data sets there is no such line."""
    twins = [group.dense for group in groups if group.dense is not None]
    if not twins or max(t.mean for t in twins) - min(t.mean for t in twins) > 0.05:
        return
    mean = fmean(twin.mean for twin in twins)
    label = f"dense twin ({groups[0].measure.words(mean)})"
    axes.axhline(mean, color=DENSE, linestyle="--", linewidth=1.4, label=label, zorder=1)
