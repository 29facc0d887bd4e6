"""The dense twin: the same recipe without a sparsifier, trained once and kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from setpoint.deploy import ArchiveError, load, save
from setpoint.recipes.config import TrainConfig
from setpoint.recipes.config_file import config_dict
from setpoint.recipes.data import Dataset
from setpoint.recipes.data.files import cache_folder
from setpoint.recipes.evaluation import Score, evaluate
from setpoint.recipes.fit import Fit
from setpoint.recipes.parts import build_parts
from setpoint.recipes.progress import EpochRow, Listener
from setpoint.recipes.result import finite, write_json
from setpoint.recipes.run_folder import read_metrics, write_metrics

# What a dense run depends on. A change to the loop that changes its outcome must raise the version.
_VERSION = 1
_FIELDS = (
    "model",
    "width",
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "weight_decay",
    "momentum",
    "lr_schedule",
    "augment",
    "precision",
    "seed",
    "device",
)
_FIGURES, _METRICS, _MODEL = "twin.json", "metrics.csv", "model.safetensors"


@dataclass(frozen=True, eq=False)
class Twin:
    """A dense model to compare with.

    Attributes:
        validation: score of the epoch that did best, whose weights these are.
        test: score of the same weights.
        rows: of its metrics.
        weights: its state dict.
    """

    validation: Score
    test: Score
    rows: Sequence[EpochRow]
    weights: dict[str, Tensor]


def dense_twin(config: TrainConfig, dataset: Dataset, checkpoint: Path, listener: Listener | None = None) -> Twin:
    """Read the twin of a run from the cache, or train it and keep it there.

    Args:
        config: of the run, resolved.
        dataset: that it trains on.
        checkpoint: file to keep an unfinished twin in.
        listener: told of the progress.
    """
    folder = cache_folder() / "dense" / _key(config, dataset)
    twin = _read(folder)
    if twin is None:
        twin = _train(config, dataset, checkpoint, listener)
        _keep(twin, folder)
    return twin


def _train(config: TrainConfig, dataset: Dataset, checkpoint: Path, listener: Listener | None) -> Twin:
    parts = build_parts(config, dataset, sparse=False)
    standing = Fit(parts, checkpoint, listener).run()
    assert standing.best is not None
    test = evaluate(parts.model, parts.test)
    weights = {name: tensor.cpu() for name, tensor in parts.model.state_dict().items()}
    return Twin(standing.best.score, test, standing.rows, weights)


def _key(config: TrainConfig, dataset: Dataset) -> str:
    """A hash of all that decides the twin, the examples among it: a name or a path may come to mean others."""
    asked = {name: value for name, value in config_dict(config).items() if name in _FIELDS}
    about = {"version": _VERSION, "torch": torch.__version__, "data": dataset.name, **asked}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for split in (dataset.train, dataset.validation, dataset.test):
        for tensor in (split.inputs, split.targets):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _read(folder: Path) -> Twin | None:
    """The twin kept in a folder; None if there is none, or it cannot be read."""
    try:
        figures = json.loads((folder / _FIGURES).read_text(encoding="utf-8"))
        rows, weights = read_metrics(folder / _METRICS), load(folder / _MODEL)
        validation, test = (
            Score(float(figures[f"{split}_loss"]), float(figures[f"{split}_accuracy"]))
            for split in ("validation", "test")
        )
        return Twin(validation, test, rows, weights)
    except (OSError, ValueError, KeyError, TypeError, ArchiveError):
        return None


def _keep(twin: Twin, folder: Path) -> None:
    """Put a twin into the cache, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        scores = {"validation": twin.validation, "test": twin.test}
        figures = {f"{split}_{key}": value for split, score in scores.items() for key, value in vars(score).items()}
        write_json(finite(figures), part / _FIGURES)
        write_metrics(twin.rows, part / _METRICS)
        save(twin.weights, part / _MODEL)
        if folder.exists() and _read(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
