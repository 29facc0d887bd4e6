"""What the methods are held against: the dense twin pruned and fine-tuned, and a smaller dense model.

The pieces are those of `setpoint train`: its models, batches, loop, checkpoints and cache of dense twins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods_runs import fine_tuning, narrow
from setpoint.recipes import RunResult, TrainConfig
from setpoint.recipes.data import load_dataset
from setpoint.recipes.dense import dense_twin
from setpoint.recipes.fit import Fit
from setpoint.recipes.loop import run_result
from setpoint.recipes.parts import build_parts
from setpoint.recipes.result import finite, write_json
from setpoint.recipes.run_folder import RunFolder, write_metrics
from setpoint.recipes.saving import save_model
from setpoint.report import Report


def dense_pruned(config: TrainConfig, described: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Prune the dense twin once by magnitude, then fine-tune it for half the epochs.

    Steps, seconds and the chosen epoch are those of the fine-tuning; the twin took as many epochs as the methods do.
    So this baseline gets one and a half times their epochs.
    """
    folder, tuning = RunFolder(out), fine_tuning(config)
    folder.check(tuning, resume=folder.config.exists())
    dataset = load_dataset(config.data, seed=config.seed)
    folder.begin(tuning)
    twin = dense_twin(config, dataset, folder.dense_checkpoint)
    parts = build_parts(tuning, dataset, sparse=True)
    assert parts.sparsifier is not None
    parts.model.load_state_dict(twin.weights)
    parts.sparsifier.freeze()
    standing = Fit(parts, folder.checkpoint).run()
    write_metrics(standing.rows, folder.metrics)
    sizes = save_model(parts, dataset, folder.model, twin.weights)
    result = run_result(parts, dataset, standing, twin, sizes)
    result = replace(result, report={**result.report, "method": described["method"]})
    return _end(result, described, folder)


def small_dense(config: TrainConfig, described: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Train a model from scratch that has only as many units in each layer as are to stay."""
    folder, small = RunFolder(out), narrow(config)
    folder.check(small, resume=folder.config.exists())
    dataset = load_dataset(config.data, seed=config.seed)
    folder.begin(small)
    whole = dense_twin(config, dataset, folder.dense_checkpoint)
    trained = dense_twin(small, dataset, folder.checkpoint)
    write_metrics(trained.rows, folder.metrics)
    parts = build_parts(small, dataset, sparse=False)
    parts.model.load_state_dict(trained.weights)
    sizes = save_model(parts, dataset, folder.model, whole.weights)
    full = build_parts(config, dataset, sparse=True).sparsifier
    assert full is not None
    best = max(trained.rows, key=lambda row: (row.validation_accuracy, row.epoch))
    result = RunResult(
        config=small,
        data=dataset.name,
        task=dataset.task,
        report=_cut_to(full.report(), trained.weights, described["method"], parts.steps).to_dict(),
        parameters=sum(w.numel() for w in whole.weights.values()),
        parameters_kept=sum(int(torch.count_nonzero(w)) for w in trained.weights.values()),
        dense_validation_accuracy=whole.validation.accuracy,
        dense_test_accuracy=whole.test.accuracy,
        dense_validation_loss=whole.validation.loss,
        dense_test_loss=whole.test.loss,
        validation_accuracy=trained.validation.accuracy,
        test_accuracy=trained.test.accuracy,
        validation_loss=trained.validation.loss,
        test_loss=trained.test.loss,
        chosen_epoch=best.epoch,
        bytes=sizes[0],
        dense_bytes=sizes[1],
        steps=parts.steps,
        seconds=trained.rows[-1].seconds,
        steps_per_second=parts.steps / trained.rows[-1].seconds,
    )
    return _end(result, described, folder)


def _cut_to(full: Report, weights: Mapping[str, Tensor], method: str, steps: int) -> Report:
    """The report of the whole model as if it had been cut to smaller weights, counted in these."""
    layers = tuple(
        replace(la, units_kept=len(weights[la.name]), params_kept=int(torch.count_nonzero(weights[la.name])))
        for la in full.layers
    )
    # Units of a row are counted one each.
    kept = {la.name: la.units_kept for la in layers}
    budgets = tuple(
        replace(b, kept=float(sum(kept[name] for name in b.layers)), cheapest_gone=1.0) for b in full.budgets
    )
    return replace(full, method=method, scope="uniform", step=steps, phase="dense", layers=layers, budgets=budgets)


def _end(result: RunResult, described: Mapping[str, Any], folder: RunFolder) -> dict[str, Any]:
    """Write the result under the baseline's own name, last of all."""
    found = finite(result.to_dict() | {"config": described})
    write_json(found, folder.report)
    folder.end()
    return dict(found)
