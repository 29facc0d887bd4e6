"""A run's folder or a saved model, opened: its models side by side, and what they are called with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from setpoint.deploy import compact, load_model, read_metadata
from setpoint.recipes.config import TrainConfig
from setpoint.recipes.example import Example
from setpoint.recipes.models import build_model
from setpoint.recipes.parts import with_channels_last
from setpoint.recipes.run_folder import RunFolder
from setpoint.units import is_coupled

# Of the example that the smaller model is compared on.
_BATCH = 4


@dataclass(frozen=True, eq=False)
class Opened:
    """What was found at a path.

    Attributes:
        models: by name: of a run `dense` (as it was begun), `run`, and `compact` if its units can be taken out; of a
            file `model`, and `compact` if there are units in it that are zero.
        example: of what they are called with.
        costs: the file for what they cost.
        note: why no smaller model was looked for; empty if one was.
    """

    models: dict[str, nn.Module]
    example: Example
    costs: Path
    note: str = ""

    @property
    def smallest(self) -> tuple[str, nn.Module]:
        """The model with the fewest parameters that has what was learned, and its name."""
        return list(self.models.items())[-1]


def open_models(path: Path, *, shape: str | None = None, trusted: Sequence[str] = (), device: str = "cpu") -> Opened:
    """Open a run's folder, or a file that `setpoint.save` wrote of a model.

    Args:
        path: of the folder or file.
        shape: of an example, as `Example.parse` reads it; needed for a file that does not say it.
        trusted: packages that the classes of a file's model come from.
        device: to put the models on.

    Raises:
        FileNotFoundError: if there is neither, or the run is not finished.
        ValueError: if the model cannot be made again, or it is not known what it is called with.
    """
    return _open_run(path, device) if path.is_dir() else _open_file(path, shape, trusted, device)


def example_of(path: Path, shape: str | None) -> Example:
    """What the model in a file is called with, as given or as the file says.

    Raises:
        ValueError: if neither does.
    """
    shape = shape or read_metadata(path).get("shape")
    if shape is None:
        raise ValueError(
            f"{path} does not say what its model is called with: give the shape of one example, such as "
            "--shape 3x32x32, or --shape 128:int64 for tokens"
        )
    return Example.parse(shape)


def _open_file(path: Path, shape: str | None, trusted: Sequence[str], device: str) -> Opened:
    models, example = {"model": load_model(path, trusted=trusted, device=device)}, example_of(path, shape)
    opened = Opened(models, example, path.with_suffix(".costs.json"))
    try:
        return _with_compact(opened, device)
    except ValueError as error:
        return replace(opened, note=f"it is not known which units could be taken out: {error}")


def _open_run(path: Path, device: str) -> Opened:
    run = RunFolder(path)
    if not run.finished:
        raise FileNotFoundError(f"{path} holds no finished run")
    config = run.read_config()
    models = {"dense": _dense(config, run).to(device), "run": load_model(run.model, device=device)}
    opened = Opened(models, example_of(run.model, None), path / "costs.json")
    if is_coupled(config.unit):
        return _with_compact(opened, device)
    return replace(opened, note=f"the run's unit is {config.unit!r}, whose zeros lie in tensors that keep their shapes")


def _dense(config: TrainConfig, run: RunFolder) -> nn.Module:
    about = read_metadata(run.model)
    shape, classes = json.loads(about["shape"]), json.loads(about["classes"])
    model = build_model(str(config.model), shape=tuple(shape), classes=len(classes), width=config.width)
    return with_channels_last(model)


def _with_compact(opened: Opened, device: str) -> Opened:
    """The same, with the last of the models made smaller, if that is possible."""
    _, model = opened.smallest
    small = compact(model, tuple(tensor.to(torch.device(device)) for tensor in opened.example.batch(_BATCH)))
    fewer = sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    return replace(opened, models={**opened.models, "compact": small}) if fewer else opened
