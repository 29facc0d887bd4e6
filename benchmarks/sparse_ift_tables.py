"""What the transformations came to: figures as JSON, a table as Markdown and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from setpoint.bench.machine import describe
from setpoint.reporting.compare import Spread
from setpoint.reporting.figures import COLORS, DENSE, INK, MARKERS, clean, new_figure, percent_axis, save_figure
from setpoint.reporting.measures import MEASURES, Measure

Run = Mapping[str, Any]

# With what stands inside of a layer, where that is not nothing.
KINDS = ("wide", "parallel", "parallel-relu", "factorized", "factorized-norm-relu", "doped")
MASKS = {
    "static": "static (drawn once)",
    "set": "set (at random)",
    "rigl": "rigl (by gradient)",
    "gentle": "rigl (moving less)",
}
MODELS = {"resnet20": "ResNet-20", "gpt": "GPT on bytes"}
DATA = {
    "cifar10": "CIFAR-10 as JPEG (quality about 75, not the original pixels)",
    "tinyshakespeare": "Tiny Shakespeare",
}
_PUBLISHED = (
    "Not like for like: other models, data, sparsities and far longer training. From the abstract of V. Thangarasa "
    'et al., "Sparse-IFT: Sparse Iso-FLOP Transformations for Maximizing Training Efficiency", ICML 2024, and of its '
    "earlier versions on arXiv (2303.11525); the paper's tables are not copied here:",
    "| model, data | dense | sparse at the same operations | figures |",
    "|---|---|---|---|",
    "| ResNet-18, ImageNet | - | +3.5 points of accuracy | published |",
    "| GPT-3 Small, WikiText-103 | - | -0.4 perplexity | published |",
    "| GPT-3 Small, Open LLM leaderboard | - | +0.9 points | published |",
)


def write_results(model: str, runs: Sequence[Run], stem: Path) -> None:
    """Write `<stem>.json`, `.md` and `.png`.

    Args:
        model: by its short name.
        runs: finished, each with its `kind`, `mask` and `seed`.
        stem: path of the files without their endings.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"machine": describe(), "runs": list(runs)}, indent=1)
    stem.with_suffix(".json").write_text(content + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text("\n".join(_page(model, runs, stem.name)) + "\n", encoding="utf-8")
    _plot(runs, stem.with_suffix(".png"))


def _page(model: str, runs: Sequence[Run], name: str) -> list[str]:
    config, measure = runs[0]["config"], MEASURES[runs[0]["task"]]
    twins = {run["seed"]: _figure(run, measure, "dense_test") for run in runs}
    lines = [
        f"# {DATA[config['data']]}, {MODELS[model]} of width {config['width']:g}: larger sparse layers",
        "",
        f"Test {measure.name}, mean (least-greatest) of the seeds; {config['epochs']} epochs, training in "
        f"{config['precision']}, the recipe of all runs is the dense twin's{_rates(config)}. "
        "Layers are made larger for a sparsity of "
        f"{100 * config['transform_sparsity']:g} % and keep the operations of the dense model. The epoch is chosen on "
        "validation examples. `difference`: to the dense twins of the same seeds, a positive number is better. "
        "`operations`: on kernels that skip zeros, and `stored`: what dense kernels compute, as multiples of the dense "
        "model's. `exact`: runs that end with exactly the weights that were handed out. `relu` stands at the end of "
        "each parallel branch, `norm-relu` between the layers of a factorized one.",
        "",
        f"| layers | masks | test {measure.name} | difference | operations | stored | exact | figures |",
        "|---|---|---|---|---|---|---|---|",
        f"| dense twin | - | {_words(list(twins.values()), measure)} | | 1 | 1 | | measured |",
    ]
    for kind in KINDS:
        for mask in MASKS:
            own = [run for run in runs if (run["kind"], run["mask"]) == (kind, mask)]
            if own:
                lines.append(_row(own, twins, measure))
    return [*lines, "", f"![Test {measure.name}]({name}.png)", "", "## Published figures", "", *_spaced(_PUBLISHED)]


def _rates(config: Mapping[str, Any]) -> str:
    scaled = config["optimizer"] in ("adam", "adamw")
    return (
        ", but that Adam's learning rates of wide layers are scaled for the entries that masks leave" if scaled else ""
    )


def _row(own: Sequence[Run], twins: Mapping[int, float], measure: Measure) -> str:
    better = 1.0 if measure.fraction else -1.0
    gains = [better * (_figure(run, measure, "test") - twins[run["seed"]]) for run in own]
    made = own[0]["transform"]
    exact = sum(bool(run["report"]["exact"]) for run in own)
    cells = (
        own[0]["kind"].replace("-", ", ", 1),
        _mask(own[0]),
        _words([_figure(run, measure, "test") for run in own], measure),
        measure.difference(sum(gains) / len(gains)),
        f"{made['flops'] / made['dense_flops']:.6f}",
        f"{made['stored_flops'] / made['dense_flops']:.2f}",
        f"{exact} of {len(own)}",
        "measured",
    )
    return f"| {' | '.join(cells)} |"


def _mask(run: Run) -> str:
    config = run["config"]
    options = "".join(f", {key} {value}" for key, value in config["options"].items())
    return f"`{config['method']}`{options}"


def _figure(run: Run, measure: Measure, split: str) -> float:
    found = measure.of(run, split)
    assert found is not None, f"{run['kind']}, {run['mask']}: no {split} figure"
    return found


def _words(figures: Sequence[float], measure: Measure) -> str:
    spread = Spread.of(figures)
    span = f" ({measure.number(spread.low)}-{measure.number(spread.high)})" if len(figures) > 1 else ""
    return f"{measure.words(spread.mean)}{span}, {len(figures)} seed{'s' if len(figures) > 1 else ''}"


def _spaced(published: Sequence[str]) -> list[str]:
    return [published[0], "", *published[1:]]


def _plot(runs: Sequence[Run], path: Path) -> None:
    """A group a kind, a marker a kind of mask, bars from the least to the greatest; the dense twin as a band."""
    measure = MEASURES[runs[0]["task"]]
    figure = new_figure(7.5, 4.6)
    axes = figure.subplots()
    dense = Spread.of(list({run["seed"]: _figure(run, measure, "dense_test") for run in runs}.values()))
    axes.axhline(dense.mean, color=DENSE, linestyle="--", linewidth=1.4, label="dense twin")
    axes.axhspan(dense.low, dense.high, color=DENSE, alpha=0.15, linewidth=0)
    kinds = [kind for kind in KINDS if any(run["kind"] == kind for run in runs)]
    for index, (mask, words) in enumerate(MASKS.items()):
        places, spreads = [], []
        for place, kind in enumerate(kinds):
            own = [_figure(r, measure, "test") for r in runs if (r["kind"], r["mask"]) == (kind, mask)]
            if own:
                places.append(place + 0.18 * (index - 1))
                spreads.append(Spread.of(own))
        if not spreads:
            continue
        axes.errorbar(
            places,
            [s.mean for s in spreads],
            yerr=[[s.mean - s.low for s in spreads], [s.high - s.mean for s in spreads]],
            label=words,
            color=COLORS[index],
            marker=MARKERS[index],
            linestyle="none",
            markersize=7,
            capsize=3,
        )
    axes.set_xticks(range(len(kinds)), [kind.replace("-", "\n", 1) for kind in kinds])
    axes.set_ylabel(f"test {measure.name}", fontsize=10)
    if measure.fraction:
        percent_axis(axes.yaxis)
    axes.margins(x=0.08, y=0.12)
    clean(axes)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False, labelcolor=INK)
    save_figure(figure, path)
