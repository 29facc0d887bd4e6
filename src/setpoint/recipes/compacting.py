"""The smaller model of a finished run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from setpoint.deploy import load, save
from setpoint.deploy.compact import compare_outputs
from setpoint.deploy.measure import Measurement, measure
from setpoint.recipes.data import Batches, load_dataset
from setpoint.recipes.evaluation import evaluate
from setpoint.recipes.parts import build_initial
from setpoint.recipes.run_folder import RunFolder
from setpoint.units import COUPLED, layer_of, unwrap
from setpoint.wiring import derive

_EVALUATION_BATCH = 1000


def compact_run(folder: Path, *, batches: tuple[int, ...] = (1, 64)) -> dict[str, Measurement]:
    """Take out of a run's model what went, and leave `compact.safetensors` and `compact.json` in its folder.

    Args:
        folder: of a finished run whose units cross layers.
        batches: sizes of the batches to time.

    Returns:
        What the run's model and the smaller one cost.

    Raises:
        ValueError: if the run's units cross no layers.
        FileNotFoundError: if the folder holds no finished run.
        RuntimeError: if the outputs of the smaller model differ.
    """
    run = RunFolder(Path(folder))
    if not run.finished:
        raise FileNotFoundError(f"{folder} holds no finished run")
    config = run.read_config()
    if config.unit not in COUPLED:
        raise ValueError(
            f"the run's unit is {config.unit!r}, whose zeros lie in tensors that keep their shapes; possible: "
            f"{', '.join(COUPLED)}"
        )
    dataset = load_dataset(config.data, seed=config.seed)
    model, small = (load(run.model, build_initial(config, dataset)) for _ in range(2))
    example = torch.zeros(1, *dataset.shape, device=config.device)
    wiring = derive(model, example)
    layers = [layer_of(model, group) for group in wiring.groups if group.kind in COUPLED[config.unit]]
    kept: dict[str, Tensor] = {layer.name: layer.alive().nonzero().flatten().cpu() for layer in layers}
    wiring.resize(small, kept)
    test = Batches(dataset.test, dataset, min(_EVALUATION_BATCH, len(dataset.test)), device=config.device)
    compare_outputs(model, small, (next(iter(test))[0],))
    costs = measure({"run": model, "compact": small}, torch.zeros(dataset.shape), batches=batches)
    _write(run, small, kept, costs, evaluate(small, test).accuracy)
    return costs


def _write(
    run: RunFolder, small: nn.Module, kept: dict[str, Tensor], costs: dict[str, Measurement], accuracy: float
) -> None:
    widths = {name: len(units) for name, units in kept.items()}
    save(unwrap(small), run.path / "compact.safetensors", metadata={"widths": json.dumps(widths)})
    figures = {
        "widths": widths,
        "test_accuracy": accuracy,
        "costs": {name: asdict(cost) for name, cost in costs.items()},
    }
    (run.path / "compact.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
