"""The plots in a run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from setpoint.deploy import load
from setpoint.recipes.result import RunResult
from setpoint.recipes.run_folder import RunFolder, read_metrics, read_updates
from setpoint.report_text import cost_words, is_pattern
from setpoint.units import is_coupled
from setpoint.writing import atomic_path


def draw_run(folder: RunFolder, result: RunResult, shape: tuple[int, ...]) -> None:
    """Draw training.png, layers.png and first_layer.png from what the folder holds.

    Args:
        folder: of the run, with its metrics and its model.
        result: its figures.
        shape: of the model's inputs, without the batch.
    """
    # Imported here: matplotlib takes a while, and only a run that has ended needs it.
    from setpoint.reporting.plots import layers_plot, training_plot
    from setpoint.reporting.weights import first_layer_plot

    config, report, layers = result.config, result.report, result.report["layers"]
    title = f"{config.model} on {result.data}, {config.method}, {100 * result.report['sparsity']:.2f} % zeros"
    dense = read_metrics(folder.dense_metrics) if folder.dense_metrics.exists() else []
    # Not there after a one-shot schedule, nor in folders of runs before there was such a file.
    updates = read_updates(folder.updates) if folder.updates.exists() else []
    timeline = config.phases.timeline(result.steps)
    with atomic_path(folder.path / "training.png") as part:
        rows, twin = ([row.to_dict() for row in epochs] for epochs in (read_metrics(folder.metrics), dense))
        training_plot(
            rows,
            part,
            dense=twin,
            updates=updates,
            sparsify=(timeline.begin, timeline.end),
            chosen=result.chosen_epoch,
            task=result.task,
            cost=None if _counts_weights(report) else _counted(report),
            title=title,
        )
    with atomic_path(folder.path / "layers.png") as part:
        layers_plot(layers, part, unit=report["unit"], cost=report["cost"], title=title)
    first = layers[0]["tensor"]
    with atomic_path(folder.path / "first_layer.png") as part:
        first_layer_plot(load(folder.model)[first], part, shape=shape, name=first)


def _counts_weights(report: Mapping[str, Any]) -> bool:
    """Whether the budget counts the weights whose zeros are drawn, and not something else, or the whole model."""
    if is_coupled(report["unit"]):
        return False
    single = report["unit"] == "weight" or is_pattern(report["unit"])
    return report["cost"] == "params" or (single and report["cost"] == "units")


def _counted(report: Mapping[str, Any]) -> str:
    return "parameters" if report["cost"] == "params" else cost_words(report["cost"])
