"""A whole run: dense twin, sparse training, and the folder that holds what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from setpoint.recipes.config import TrainConfig
from setpoint.recipes.data import Dataset, load_dataset
from setpoint.recipes.defaults import resolve
from setpoint.recipes.dense import Twin, dense_twin
from setpoint.recipes.drawing import draw_run
from setpoint.recipes.evaluation import evaluate
from setpoint.recipes.fit import Fit, Standing
from setpoint.recipes.parts import Parts, build_parts
from setpoint.recipes.progress import Listener, Progress
from setpoint.recipes.result import RunResult, finite, read_result, write_result
from setpoint.recipes.run_folder import RunFolder, write_metrics, write_updates
from setpoint.recipes.saving import save_model


def train_run(config: TrainConfig, out: Path, *, resume: bool = False, progress: Listener | None = None) -> RunResult:
    """Train a model to its target, beside a dense twin, and leave a folder with the model, its figures and plots.

    A run that was killed at any moment goes on from its last checkpoint and ends, on the same machine, in the same
    weights bit for bit. Torch's random state is the caller's again afterwards.

    Args:
        config: what to do; what it leaves open follows from the recipe of its data set.
        out: folder to make.
        resume: continue the run in that folder; a finished one is only read.
        progress: called several times a second, and at the end of each epoch with its row of metrics.

    Returns:
        The figures that report.json holds.

    Raises:
        FileExistsError: if another process works in the folder, or it is not empty and `resume` is not asked for.
        FileNotFoundError: if there is no run to resume.
        ValueError: for anything that cannot be done, before training begins.
        FloatingPointError: if the training diverges.
        OSError: if a file cannot be written, saying why; the run goes on from its last checkpoint with `resume`.
    """
    config, folder = resolve(config), RunFolder(Path(out))
    folder.check(config, resume=resume)
    if resume and folder.finished:
        return read_result(folder.report)
    device = torch.device(config.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        dataset = load_dataset(config.data, seed=config.seed, context=config.context)
        # What cannot be done is refused here, before a folder is made and a twin trained.
        build_parts(config, dataset, sparse=True)
        with folder.opened(config, resume=resume):
            # Another process may have finished it since.
            return read_result(folder.report) if folder.finished else _train(config, folder, dataset, progress)


def _train(config: TrainConfig, folder: RunFolder, dataset: Dataset, progress: Listener | None) -> RunResult:
    twin = dense_twin(config, dataset, folder.dense_checkpoint, progress) if config.dense_twin else None
    parts = build_parts(config, dataset, sparse=True)
    fit = Fit(parts, folder.checkpoint)
    fit.listener = _recorder(fit, folder, progress)
    standing = fit.run()
    _record(fit, folder)
    if twin is not None:
        write_metrics(twin.rows, folder.dense_metrics)
    sizes = save_model(parts, dataset, folder.model, None if twin is None else twin.weights)
    result = run_result(parts, dataset, standing, twin, sizes)
    draw_run(folder, result, dataset.shape)
    # Last of all: where there is a report, the run is finished.
    write_result(result, folder.report)
    folder.end()
    return result


def _recorder(fit: Fit, folder: RunFolder, listener: Listener | None) -> Listener:
    """Pass the progress on, and keep metrics.csv and updates.csv up to date."""

    def record(progress: Progress) -> None:
        if progress.row is not None:
            _record(fit, folder)
        if listener is not None:
            listener(progress)

    return record


def _record(fit: Fit, folder: RunFolder) -> None:
    write_metrics(fit.standing.rows, folder.metrics)
    history = [] if fit.parts.sparsifier is None else fit.parts.sparsifier.history
    if history:
        write_updates(history, folder.updates)


def run_result(
    parts: Parts, dataset: Dataset, standing: Standing, twin: Twin | None, sizes: tuple[int, int]
) -> RunResult:
    """What a run that is over comes to.

    Args:
        parts: of the run, with the chosen weights in the model.
        dataset: that it was trained on.
        standing: of its `Fit`.
        twin: to compare with.
        sizes: of the model's file and of a dense one's, in bytes.
    """
    assert parts.sparsifier is not None
    assert standing.best is not None
    parameters = list(parts.model.parameters())
    test = evaluate(parts.model, parts.test)
    return RunResult(
        config=parts.config,
        data=dataset.name,
        task=dataset.task,
        report=finite(parts.sparsifier.report().to_dict()),
        parameters=sum(p.numel() for p in parameters),
        parameters_kept=sum(int(torch.count_nonzero(p)) for p in parameters),
        dense_validation_accuracy=None if twin is None else twin.validation.accuracy,
        dense_test_accuracy=None if twin is None else twin.test.accuracy,
        dense_validation_loss=None if twin is None else twin.validation.loss,
        dense_test_loss=None if twin is None else twin.test.loss,
        validation_accuracy=standing.best.score.accuracy,
        test_accuracy=test.accuracy,
        validation_loss=standing.best.score.loss,
        test_loss=test.loss,
        chosen_epoch=standing.best.epoch,
        bytes=sizes[0],
        dense_bytes=sizes[1],
        steps=parts.steps,
        seconds=standing.seconds,
        steps_per_second=parts.steps / standing.step_seconds,
        transform=_transform(parts),
    )


def _transform(parts: Parts) -> dict[str, Any] | None:
    """Figures of the transformation; its layers are those of the sparsifier's report."""
    if parts.transform is None:
        return None
    return {name: finite(value) for name, value in parts.transform.to_dict().items() if name != "layers"}
