"""How much faster smaller models are: ResNet-20 and VGG-16 at half their operations, in torch and in onnxruntime.

Each model is trained for a few steps on CIFAR-10, so that what goes is chosen by weights and gradients of real images;
accuracy is not the subject. Dense and compacted model are timed in turns: ratios hold, milliseconds are the machine's.

    python benchmarks/inference.py
    python benchmarks/inference.py --models resnet20 --threads 1
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

import setpoint
from setpoint.bench.machine import describe
from setpoint.deploy.measure import measure
from setpoint.recipes.data import Batches, load_dataset
from setpoint.recipes.models import build_model

RESULTS = Path(__file__).parent / "results" / "inference.json"
BATCHES = (1, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20", "vgg16"])
    parser.add_argument("--method", default="wgsef")
    parser.add_argument("--multiples", type=int, nargs="+", default=[1, 8, 16], help="widths are multiples of these")
    parser.add_argument("--flops", type=float, default=0.5, help="fraction that may stay")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.models:
        for multiple in args.multiples:
            rows.append(compare(name, args, multiple))
            print(line(rows[-1]), flush=True)
    content = {"machine": describe(), "threads": args.threads, "method": args.method, "rows": rows}
    args.results.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def compare(name: str, args: argparse.Namespace, multiple: int) -> dict[str, Any]:
    """Train a model to its target, compact it, and time it beside a dense one."""
    dataset = load_dataset("cifar10", seed=0)
    torch.manual_seed(0)
    model = build_model(name, shape=dataset.shape, classes=len(dataset.classes))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    dense = copy.deepcopy(model)
    example = torch.zeros(1, *dataset.shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparsifier = setpoint.Sparsifier(
        model,
        optimizer,
        method=args.method,
        target=setpoint.Target(flops=args.flops, multiple_of=multiple),
        unit="channel",
        example_inputs=example,
        steps=args.steps,
    )
    batches = iter(Batches(dataset.train, dataset, 64, seed=0, shuffle=True).epoch(0))
    for _ in range(args.steps):
        inputs, targets = next(batches)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs.to(memory_format=torch.channels_last)), targets).backward()
        optimizer.step()
    small = setpoint.compact(sparsifier, inputs)
    report = sparsifier.report()
    costs = measure({"dense": dense, "compact": small}, example[0], batches=BATCHES, onnx=True)
    return {
        "model": name,
        "multiple_of": multiple,
        "steps": args.steps,
        "exact": report.exact,
        "widths": [f"{layer.units_kept}/{layer.units}" for layer in report.layers],
        "flops": costs["compact"].flops / costs["dense"].flops,
        "parameters": costs["compact"].parameters / costs["dense"].parameters,
        "torch": ratios({key: cost.latency_ms for key, cost in costs.items()}),
        "onnxruntime": ratios({key: cost.onnx_latency_ms for key, cost in costs.items()}),
    }


def ratios(latency: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By batch size, both times in milliseconds and their ratio."""
    return {
        str(size): {
            "dense_ms": latency["dense"][size],
            "compact_ms": latency["compact"][size],
            "ratio": latency["compact"][size] / latency["dense"][size],
        }
        for size in BATCHES
    }


def line(row: dict[str, Any]) -> str:
    """One row in words."""
    times = [
        f"{runtime} batch {size} {found['ratio']:.2f}"
        for runtime in ("torch", "onnxruntime")
        for size, found in row[runtime].items()
    ]
    return f"{row['model']}, widths in multiples of {row['multiple_of']}: FLOPs {row['flops']:.3f}, {', '.join(times)}"


if __name__ == "__main__":
    main()
