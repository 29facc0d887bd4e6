"""The model's file, and how much smaller it is than a dense one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from setpoint.deploy import save
from setpoint.recipes.config_file import config_dict
from setpoint.recipes.data import Dataset
from setpoint.recipes.parts import Parts, build_initial


def save_model(parts: Parts, dataset: Dataset, path: Path, dense: Mapping[str, Tensor] | None) -> tuple[int, int]:
    """Save a run's model with what it takes to build it again.

    Args:
        parts: of the run, the chosen weights in the model.
        dataset: that it was trained on.
        path: of the file.
        dense: weights of the dense twin; without them the model's first weights stand for a dense model.

    Returns:
        The size of the file, and that of a file of the dense weights.
    """
    metadata = _metadata(parts, dataset)
    initial = build_initial(parts.config, dataset)
    if dense is not None:
        initial.load_state_dict(dense)
    trial = path.with_name(".dense.safetensors.part")
    try:
        dense_bytes = save(initial, trial, metadata=metadata).stat().st_size
    finally:
        trial.unlink(missing_ok=True)
    return save(parts.model, path, metadata=metadata).stat().st_size, dense_bytes


def _metadata(parts: Parts, dataset: Dataset) -> dict[str, str]:
    return {
        "setpoint": version("setpoint"),
        "model": str(parts.config.model),
        "width": str(parts.config.width),
        "data": dataset.name,
        "shape": json.dumps(dataset.shape),
        "classes": json.dumps(dataset.classes),
        "config": json.dumps(config_dict(parts.config)),
    }
