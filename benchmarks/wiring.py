"""How long it takes to derive a model's wiring, beside the export that it begins with.

`setpoint.wiring.derive` and `torch.export.export` take turns in one process, on ResNet-50 (224x224) and BERT-base (128
tokens), with random weights. The first of each in a process of its own is timed as well. Seconds are of the processor,
which on a machine that does nothing else are those of the clock. Prints a table and writes `results/wiring.json`.

    python benchmarks/wiring.py
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from setpoint.bench.machine import describe
from setpoint.recipes.models import build_model
from setpoint.wiring import derive

RESULTS = Path(__file__).parent / "results" / "wiring.json"
# Deriving may take at most so many times as long as the export alone.
BAR = 2.0


def resnet50() -> tuple[nn.Module, Tensor]:
    return build_model("resnet50", shape=(3, 224, 224), classes=1000).eval(), torch.zeros(1, 3, 224, 224)


def bert_base() -> tuple[nn.Module, Tensor]:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig()).eval(), torch.zeros(1, 128, dtype=torch.long)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {"ResNet-50": resnet50, "BERT-base": bert_base}


def export_alone(model: nn.Module, inputs: Tensor) -> None:
    torch.export.export(model, (inputs,), strict=False)


WAYS: dict[str, Callable[[nn.Module, Tensor], Any]] = {"export": export_alone, "derive": derive}


def seconds(way: str, model: nn.Module, inputs: Tensor) -> float:
    since = time.process_time()
    WAYS[way](model, inputs)
    return time.process_time() - since


def first(name: str, way: str) -> float:
    """The first run of a fresh process."""
    return seconds(way, *MODELS[name]())


def measure(name: str, repeats: int, processes: int) -> dict[str, Any]:
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        cold = [{way: pool.apply(first, (name, way)) for way in WAYS} for _ in range(processes)]
    model, inputs = MODELS[name]()
    for way in WAYS:
        seconds(way, model, inputs)
    warm = [{way: seconds(way, model, inputs) for way in WAYS} for _ in range(repeats)]
    return {
        "groups": len(derive(model, inputs).groups),
        "parameters": sum(p.numel() for p in model.parameters()),
        "warm": summary(warm),
        "cold": summary(cold),
    }


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """All seconds, and the median of the runs' ratios."""
    ratio = median(run["derive"] / run["export"] for run in runs)
    return {**{way: [round(run[way], 3) for run in runs] for way in WAYS}, "ratio": round(ratio, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="of each in one process")
    parser.add_argument("--processes", type=int, default=3, help="for the first run of each")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    found = {name: measure(name, args.repeats, args.processes) for name in MODELS}
    print(f"{'model':<12}{'groups':>8}{'process':>9}{'export':>10}{'derive':>10}{'ratio':>8}")
    for name, row in found.items():
        for kind in ("warm", "cold"):
            times = "".join(f"{median(row[kind][way]):>9.2f}s" for way in WAYS)
            print(f"{name:<12}{row['groups']:>8}{kind:>9}{times}{row[kind]['ratio']:>8.2f}")
    within = all(row[kind]["ratio"] <= BAR for row in found.values() for kind in ("warm", "cold"))
    print(f"bar: at most {BAR:g} times the export alone; {'met' if within else 'missed'}")
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps({"machine": describe(), "bar": BAR, "models": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
