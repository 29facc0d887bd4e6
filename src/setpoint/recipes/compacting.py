"""The smaller model of a finished run, or of a saved model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor, nn

from setpoint.deploy import load, read_metadata, save
from setpoint.deploy.compact import compare_outputs, living_units
from setpoint.deploy.measure import Measurement, measure
from setpoint.recipes.data import load_dataset
from setpoint.recipes.evaluation import Score, evaluate
from setpoint.recipes.models import example_input
from setpoint.recipes.opening import Opened, open_models
from setpoint.recipes.parts import build_initial, evaluation_batches
from setpoint.recipes.result import finite, write_json
from setpoint.recipes.run_folder import RunFolder
from setpoint.units import COUPLED, layers_of, wiring_for


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
    dataset = load_dataset(config.data, seed=config.seed, context=config.context)
    model, small = (load(run.model, build_initial(config, dataset)) for _ in range(2))
    example = example_input(dataset.shape, device=config.device)
    wiring = wiring_for(model, config.unit, example)
    layers = layers_of(model, wiring, config.unit)
    kept = living_units(layers)
    wiring.resize(small, kept)
    test = evaluation_batches(dataset.test, dataset, config)
    compare_outputs(model, small, (next(iter(test))[0],))
    gone = [name for la in layers for i, name in enumerate(la.names) if i not in kept[la.name].tolist()]
    costs = measure({"run": model, "compact": small}, example[0], batches=batches)
    _write(run, small, kept, gone, costs, evaluate(small, test))
    return costs


def compact_file(path: Path, to: Path, *, shape: str | None = None, trusted: Sequence[str] = ()) -> Opened:
    """Take out of a saved model the channels, neurons and heads that are zero throughout, and save what is left.

    Args:
        path: of a file that `setpoint.save` wrote of a model.
        to: the file to write.
        shape: of an example, as `Example.parse` reads it; needed where the file does not say it.
        trusted: packages that the classes of the model come from.

    Returns:
        The model and the smaller one, to be measured.

    Raises:
        ValueError: if the model cannot be made again or traced, or if no unit in it is zero throughout.
        RuntimeError: if the outputs of the smaller model differ.
    """
    opened = open_models(path, shape=shape, trusted=trusted)
    if "compact" not in opened.models:
        raise ValueError(f"nothing can be taken out of {path}: {opened.note or 'no unit in it is zero throughout'}")
    save(opened.models["compact"], to, metadata={**read_metadata(path), "shape": str(opened.example)})
    return replace(opened, costs=to.with_suffix(".costs.json"))


def _write(
    run: RunFolder,
    small: nn.Module,
    kept: dict[str, Tensor],
    gone: Sequence[str],
    costs: dict[str, Measurement],
    test: Score,
) -> None:
    widths = {name: len(units) for name, units in kept.items()}
    metadata = {**read_metadata(run.model), "widths": json.dumps(widths), "gone": json.dumps(gone)}
    save(small, run.path / "compact.safetensors", metadata=metadata)
    figures = {
        "widths": widths,
        "gone": gone,
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "costs": {name: asdict(cost) for name, cost in costs.items()},
    }
    write_json(finite(figures), run.path / "compact.json")
