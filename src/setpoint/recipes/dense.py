"""The dense twin: the same recipe without a sparsifier, trained once and kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from setpoint.deploy import load, read_metadata, save
from setpoint.recipes.config import TrainConfig
from setpoint.recipes.config_file import config_dict
from setpoint.recipes.data import Dataset
from setpoint.recipes.data.files import cache_folder
from setpoint.recipes.evaluation import Score, evaluate
from setpoint.recipes.fit import Fit
from setpoint.recipes.parts import build_parts
from setpoint.recipes.progress import EpochRow, Listener

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

logger = logging.getLogger(__name__)


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
    path = cache_folder() / "dense" / _key(config, dataset) / "model.safetensors"
    twin = _read(path)
    if twin is None:
        twin = _train(config, dataset, checkpoint, listener)
        _keep(twin, path)
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


def _read(path: Path) -> Twin | None:
    """The twin kept in a file; None if there is none, or it cannot be read."""
    try:
        about, weights = read_metadata(path), load(path)
        figures = {key: json.loads(about[key]) for key in ("validation", "test", "rows")}
        validation, test = (Score(**figures[split]) for split in ("validation", "test"))
        return Twin(validation, test, [EpochRow(**row) for row in figures["rows"]], weights)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _keep(twin: Twin, path: Path) -> None:
    """Put a twin into the cache, if that can be written.

    In one file with one checksum, which takes its name at once: two processes that train the same twin keep the same.
    """
    figures = {"validation": vars(twin.validation), "test": vars(twin.test), "rows": [r.to_dict() for r in twin.rows]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(twin.weights, path, metadata={key: json.dumps(value) for key, value in figures.items()})
    except OSError as error:
        logger.warning("the dense twin could not be kept, and will be trained again: %s", error)
