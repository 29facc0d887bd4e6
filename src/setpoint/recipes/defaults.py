"""The recipes: what trains well on each data set, for whatever a config leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from setpoint.recipes.config import OptimizerName, RateSchedule, TrainConfig
from setpoint.recipes.data import dataset_names, is_text
from setpoint.units import is_coupled


@dataclass(frozen=True)
class Recipe:
    """The fields of `TrainConfig` that depend on the data set."""

    model: str
    epochs: int
    batch_size: int
    optimizer: OptimizerName
    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.0
    lr_schedule: RateSchedule = "cosine"
    width: float = 1.0
    exclude: tuple[str, ...] = ()


_IMAGES = Recipe("resnet20", 60, 128, "sgd", lr=0.1, weight_decay=5e-4, momentum=0.9)
_GREY = Recipe("lenet300", 20, 128, "adam", lr=1.2e-3)
# Embeddings and the last layer stay dense, as in the literature on sparse language models; embeddings always do.
_TEXT = Recipe("gpt", 4, 16, "adamw", lr=1e-3, weight_decay=0.1, exclude=("head.weight",))
_RECIPES = {
    "digits": Recipe("mlp", 60, 32, "adam", lr=2e-3),
    "mnist": _GREY,
    "fashion-mnist": _GREY,
}
# Where another optimizer is asked for than the recipe's, its figures do not apply.
_OTHER_OPTIMIZERS: dict[str, tuple[float, float]] = {"sgd": (0.05, 0.9), "adam": (1e-3, 0.0), "adamw": (1e-3, 0.0)}


def resolve(config: TrainConfig) -> TrainConfig:
    """Fill in what a config leaves open, so that it repeats the run wherever and whenever it is read.

    Returns:
        The config with no open field left but `interval`, which may follow from the number of steps, with the device
        decided and the path of a folder made absolute.
    """
    recipe = _recipe(config)
    open_ = {f.name: getattr(recipe, f.name) for f in fields(recipe) if getattr(config, f.name) is None}
    phases = config.phases
    data = config.data if config.data in dataset_names() else str(Path(config.data).expanduser().absolute())
    return replace(
        config,
        **open_,
        schedule=phases.shape,
        begin=phases.begin,
        end=phases.end,
        data=data,
        device=device_named(config.device),
    )


def _recipe(config: TrainConfig) -> Recipe:
    recipe = _TEXT if is_text(config.data) else _RECIPES.get(config.data, _IMAGES)
    if config.include or isinstance(config.scope, Mapping) or is_coupled(config.unit):
        # Layers are chosen by name, or those between layers, which the last one is not.
        recipe = replace(recipe, exclude=())
    if config.optimizer in (None, recipe.optimizer):
        return recipe
    lr, momentum = _OTHER_OPTIMIZERS[str(config.optimizer)]
    return replace(recipe, lr=lr, momentum=momentum)


def device_named(name: str) -> str:
    """Decide for a device where "auto" is asked for.

    Raises:
        ValueError: for a device that there is not.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ValueError(f"device={name!r} is no device: cpu, cuda, cuda:1 or auto is possible") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name!r} was asked for, but torch finds no CUDA device; cpu or auto is possible")
    return name
