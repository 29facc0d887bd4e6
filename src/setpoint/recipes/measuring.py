"""What the models of a run or a file cost, and their way to other runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from setpoint.deploy import export
from setpoint.deploy.measure import Measurement, measure
from setpoint.recipes.opening import Opened
from setpoint.recipes.result import write_json


def measure_opened(
    opened: Opened, *, batches: Sequence[int] = (1, 64), repeats: int = 30, onnx: bool = False
) -> dict[str, Measurement]:
    """Measure the models side by side, and leave the figures in `opened.costs`.

    Args:
        opened: a run or a file.
        batches: sizes of the batches to time.
        repeats: passes of each model at each size.
        onnx: time them in onnxruntime as well, on the CPU.

    Raises:
        ImportError: for `onnx` without the packages of the extra `export`.
    """
    costs = measure(opened.models, opened.example.one(), batches=batches, repeats=repeats, onnx=onnx)
    device = next((p.device.type for p in opened.smallest[1].parameters()), "cpu")
    about = {"torch": torch.__version__, "device": device, "threads": torch.get_num_threads(), "repeats": repeats}
    write_json({**about, "costs": {name: asdict(cost) for name, cost in costs.items()}}, opened.costs)
    return costs


def export_opened(opened: Opened, to: Path) -> str:
    """Write the smallest model for another runtime (see `setpoint.export`), and tell its name."""
    name, model = opened.smallest
    export(model, to, opened.example.batch(2))
    return name
