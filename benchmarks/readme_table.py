"""Print the README's table of MNIST accuracies from the committed results.

python benchmarks/readme_table.py
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("magnitude", "gsp", "wgsef", "l0", "hoyer", "dense-pruned", "small-dense")
ROWS = {
    "mnist-lenet300": "LeNet-300-100, weights",
    "mnist-lenet5": "LeNet-5, weights",
    "mnist-lenet5-structured": "LeNet-5, filters and neurons",
}


def rows() -> list[str]:
    """Lines of a Markdown table: mean test accuracies in percent; the best of a row's methods in bold."""
    lines = [f"| | gone | dense | {' | '.join(f'`{c}`' for c in COLUMNS)} |", "|---" * (len(COLUMNS) + 3) + "|"]
    for name, title in ROWS.items():
        runs = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["runs"]
        found: dict[float, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for run in runs:
            found[run["config"]["sparsity"]][run["variant"]].append(100 * run["test_accuracy"])
        # The dense twin of each seed, once.
        twins = {run["config"]["seed"]: 100 * run["dense_test_accuracy"] for run in runs if run["dense_test_accuracy"]}
        for sparsity, variants in sorted(found.items()):
            means = {c: fmean(variants[c]) for c in COLUMNS if variants.get(c)}
            best = max(f"{m:.2f}" for m in means.values())
            cells = [_cell(means.get(c), best) for c in COLUMNS]
            dense = fmean(twins.values())
            lines.append(f"| {title} | {100 * sparsity:g} % | {dense:.2f} | {' | '.join(cells)} |")
    return lines


def _cell(mean: float | None, best: str) -> str:
    if mean is None:
        return ""
    text = f"{mean:.2f}"
    return f"**{text}**" if text == best else text


if __name__ == "__main__":
    print("\n".join(rows()))
