"""The results of the comparison: figures as JSON, tables as Markdown and a plot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from methods_runs import BASELINES, DENSE_PRUNED, MODES, SMALL_DENSE
from setpoint.bench.machine import describe
from setpoint.reporting import compare_plot, group_runs
from setpoint.reporting.compare import Spread

Run = Mapping[str, Any]

MODELS = {"lenet300": "LeNet-300-100", "lenet5": "LeNet-5 (Caffe)", "resnet20": "ResNet-20"}
# The images as they are here, which a reader must know to compare.
DATA = {"mnist": "MNIST", "cifar10": "CIFAR-10 as JPEG (quality about 75, not the original pixels)"}
PUBLISHED = Path(__file__).parent / "published.json"


def write_results(model: str, mode: str, runs: Sequence[Run], stem: Path) -> None:
    """Write `<stem>.json`, `.md` and `.png`.

    Args:
        model: by its short name.
        mode: a key of `MODES`.
        runs: finished, each with its `variant`; all of the same number of epochs.
        stem: path of the files without their endings.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"machine": describe(), "runs": list(runs)}, indent=1)
    stem.with_suffix(".json").write_text(content + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text("\n".join(_page(model, mode, runs, stem.name)) + "\n", encoding="utf-8")
    compare_plot(
        group_runs([_as_drawn(run) for run in runs]),
        stem.with_suffix(".png"),
        dashed=[_label(name) for name in BASELINES],
        xlabel=f"sparsity ({MODES[mode].counted} that went)",
    )


def _label(variant: str) -> str:
    return "dense-pruned (1.5x epochs)" if variant == DENSE_PRUNED else variant


def _as_drawn(run: Run) -> Run:
    """A run under its variant's name, with the share of the counted cost that went for its sparsity."""
    same = {"method": _label(run["variant"]), "options": {}, "width": 1.0, "scope": "global", "context": None}
    return {
        **run,
        "task": "classification",
        "config": {**run["config"], **same},
        "report": {**run["report"], "sparsity": run["report"]["achieved"]},
    }


def _page(model: str, mode: str, runs: Sequence[Run], name: str) -> list[str]:
    epochs = _epochs(runs)
    present = {run["variant"] for run in runs}
    lines = [
        f"# {DATA[runs[0]['config']['data']]}, {MODELS[model]}, {epochs} epochs: {mode}",
        "",
        f"Test accuracy in percent, mean (least-greatest) of the seeds. The sparsity is the share of all "
        f"{MODES[mode].counted} that went. The epoch is chosen on validation examples. "
        "`on target`: runs whose own report says that the target is met and one more unit would break it.",
        "",
        *_measured(runs, mode),
        "",
        f"![Accuracy against sparsity]({name}.png)",
    ]
    for variant in (v for v in BASELINES if v in present):
        lines += ["", _about(variant, epochs)]
    if mode == "structured":
        lines += ["", *_left_over(runs, mode)]
    if mode == "channels":
        lines += ["", *_costs(runs, mode)]
    return [*lines, *_published(model, epochs)]


def _epochs(runs: Sequence[Run]) -> int:
    return int(runs[0]["config"]["epochs"])


def _about(variant: str, epochs: int) -> str:
    if variant == SMALL_DENSE:
        return (
            "`small-dense`: no method; a model with every hidden width multiplied by the fraction that stays, trained "
            f"from scratch for {epochs} epochs."
        )
    half = max(1, epochs // 2)
    return (
        f"`dense-pruned`: the dense twin ({epochs} epochs), cut once by magnitude, then fine-tuned for {half} more "
        f"from half the learning rate. It gets {1 + half / epochs:.3g} times the epochs of the methods, whose "
        f"{epochs} hold everything."
    )


def _measured(runs: Sequence[Run], mode: str) -> list[str]:
    sparsities = sorted({run["config"]["sparsity"] for run in runs})
    twins = {run["config"]["seed"]: run["dense_test_accuracy"] for run in runs}
    dense = ["dense twin", _accuracies(twins.values()), *("" for _ in sparsities), "", "measured"]
    rows = [dense]
    for variant in (v for v in MODES[mode].variants if any(run["variant"] == v for run in runs)):
        own = [run for run in runs if run["variant"] == variant]
        cells = [_accuracies(r["test_accuracy"] for r in own if r["config"]["sparsity"] == s) for s in sparsities]
        exact = sum(bool(run["report"]["exact"]) for run in own)
        on_target = f"{'yes' if exact == len(own) else 'no'}, {exact} of {len(own)} runs"
        rows.append([f"`{variant}`", "", *cells, on_target, "measured"])
    return _table(["method", "0 %", *(f"{100 * s:g} %" for s in sparsities), "on target", "figures"], rows)


def _accuracies(values: Iterable[float]) -> str:
    found = list(values)
    if not found:
        return "-"
    spread = Spread.of(found)
    span = f" ({100 * spread.low:.2f}-{100 * spread.high:.2f})" if len(found) > 1 else ""
    return f"{100 * spread.mean:.2f}{span}, {len(found)} seed{'s' if len(found) > 1 else ''}"


def _left_over(runs: Sequence[Run], mode: str) -> list[str]:
    """How large the models are once empty units are cut out: the methods choose where the units go."""
    sparsities = sorted({run["config"]["sparsity"] for run in runs})
    rows = []
    for variant in (v for v in MODES[mode].variants if any(run["variant"] == v for run in runs)):
        cells = []
        for sparsity in sparsities:
            own = [r for r in runs if r["variant"] == variant and r["config"]["sparsity"] == sparsity]
            sizes = [_compacted(run["report"]["layers"]) for run in own]
            units = [[layer["units_kept"] for layer in run["report"]["layers"]] for run in own]
            means = "-".join(f"{sum(kept) / len(kept):.0f}" for kept in zip(*units))
            cells.append(f"{sum(sizes) / len(sizes):,.0f} ({means})" if own else "-")
        rows.append([f"`{variant}`", *cells])
    return [
        "Weights of the model that is left once empty units are cut out with their inputs, computed from the layers' "
        "units; in brackets the units of each layer. Means of the seeds. The same number of units can be a much "
        "larger or smaller model:",
        "",
        *_table(["method", *(f"{100 * s:g} %" for s in sparsities)], rows),
    ]


def _costs(runs: Sequence[Run], mode: str) -> list[str]:
    """What the models cost once the channels are out, beside the model with its zeros."""
    rows = []
    for run in sorted(runs, key=lambda run: (MODES[mode].variants.index(run["variant"]), run["config"]["seed"])):
        if "compact" not in run:
            continue
        costs, widths = run["compact"]["costs"], run["compact"]["widths"]
        small, whole = costs["compact"], costs["run"]
        latency = [f"{small['latency_ms'][n] / whole['latency_ms'][n]:.2f}x" for n in small["latency_ms"]]
        rows.append(
            [
                f"`{run['variant']}`",
                f"{100 * run['config']['sparsity']:g} %",
                f"{100 * run['compact']['test_accuracy']:.2f}",
                *(f"{small[key]:,} ({small[key] / whole[key]:.3f}x)" for key in ("flops", "parameters")),
                *latency,
                " ".join(str(width) for width in widths.values()),
            ]
        )
    if not rows:
        return []
    batches = [
        f"latency, batch {n}"
        for n in next(run for run in runs if "compact" in run)["compact"]["costs"]["run"]["latency_ms"]
    ]
    head = ["method", "gone", "test accuracy", "operations, one example", "parameters", *batches, "widths"]
    return [
        "The smaller models, with the channels taken out; ratios are to the model before, latencies medians of forward "
        "passes taken in turns on the machine that trained:",
        "",
        *_table(head, rows),
    ]


def _compacted(layers: Sequence[Mapping[str, Any]]) -> float:
    """Weights of a chain of layers without its empty units; the ten outputs are no layer of the report."""
    total, before, before_kept = 0.0, 1, 1
    for layer in layers:
        inputs = layer["params"] / layer["units"]
        total += layer["units_kept"] * inputs * before_kept / before
        before, before_kept = layer["units"], layer["units_kept"]
    return total + 10 * before_kept


def _published(model: str, epochs: int) -> list[str]:
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    rows = [row for row in published["rows"] if row["model"] == model]
    if not rows:
        return []
    sources = {key: source for key, source in published["sources"].items() if any(row["from"] == key for row in rows)}
    numbers = {key: index for index, key in enumerate(sources, 1)}
    cells = [
        [
            MODELS[model],
            row["method"],
            row["kept"],
            f"{row['accuracy']:.2f}",
            str(row["runs"]),
            f"[{numbers[row['from']]}]",
            sources[row["from"]]["mark"],
        ]
        for row in rows
    ]
    return [
        "",
        "## Published figures",
        "",
        f"Not measured here, and not like for like: other recipes, many more epochs than the {epochs} above, other "
        "counts. They tell the order of magnitude.",
        "",
        *_table(["model", "method", "what was kept", "test accuracy", "runs", "source", "figures"], cells),
        "",
        *(f"[{numbers[key]}] {source['source']}. {source['differs']}\n" for key, source in sources.items()),
        " ".join(published["notes"]),
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
