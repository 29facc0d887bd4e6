"""Accuracy against sparsity on MNIST: every method at several sparsities and seeds, beside its dense twin.

Writes `results/mnist-<model>.json`, `.md` and `.png`. A run that is finished is not repeated, so the script can be
stopped and started again.

    SETPOINT_DATA=... python benchmarks/mnist.py lenet300 --epochs 20 --sparsities 0.9 0.95 0.98 --processes 2
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from machine import describe

RESULTS = Path(__file__).parent / "results"
# By the name in the plot: the method and what its options are.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "magnitude": ("magnitude", {}),
    "gsp": ("gsp", {}),
    "wgsef": ("wgsef", {}),
    "gsp-paper-map": ("gsp", {"debias": False}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["lenet300", "lenet5"])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.9, 0.95, 0.98])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=["magnitude", "gsp"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks"))
    args = parser.parse_args()
    # The dense twins first: the sparse runs of a seed share one.
    jobs = [
        (args.model, args.epochs, v, s, seed, args.runs)
        for seed in args.seeds
        for v, s in product(args.variants, args.sparsities)
    ]
    first = [jobs[i] for i in range(0, len(jobs), len(jobs) // len(args.seeds))]
    results: dict[Path, dict[str, Any]] = {}
    for batch in (first, [j for j in jobs if j not in first]):
        with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
            for done in as_completed([pool.submit(run, *job) for job in batch]):
                folder, result = done.result()
                results[folder] = result
                write(args.model, [results[f] for f in sorted(results)])
                line = f"{folder.name}: {result['test_accuracy']:.4f} (dense {result['dense_test_accuracy']:.4f})"
                print(line, flush=True)


def run(model: str, epochs: int, variant: str, sparsity: float, seed: int, runs: Path) -> tuple[Path, dict[str, Any]]:
    import torch

    from setpoint.recipes import TrainConfig, train_run

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    method, options = VARIANTS[variant]
    config = TrainConfig(
        data="mnist", model=model, method=method, options=options, sparsity=sparsity, seed=seed, epochs=epochs
    )
    folder = runs / f"mnist-{model}-{variant}-{sparsity}-{seed}"
    result = train_run(config, folder, resume=(folder / "config.yaml").exists())
    return folder, result.to_dict()


def write(model: str, results: list[dict[str, Any]]) -> None:
    from rich.console import Console

    from setpoint.reporting import compare_plot, compare_table, group_runs

    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"mnist-{model}"
    stem.with_suffix(".json").write_text(json.dumps({"machine": describe(), "runs": results}, indent=1) + "\n")
    groups = group_runs(results)
    compare_plot(groups, stem.with_suffix(".png"))
    with stem.with_suffix(".md").open("w") as file:
        file.write("```\n")
        Console(file=file, width=120).print(compare_table(groups))
        file.write("```\n")


if __name__ == "__main__":
    main()
