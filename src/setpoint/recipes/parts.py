"""What a config builds: data, model, optimizer, schedule of the learning rate, and the sparsifier."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from setpoint.recipes.config import TrainConfig
from setpoint.recipes.data import Batches, Dataset, Split, Task
from setpoint.recipes.data.seeding import derive_seed
from setpoint.recipes.models import build_model, example_input
from setpoint.sparsifier import Sparsifier
from setpoint.transforms import Kind, SparseIFT, sparse_ift

# Targets a batch.
_EVALUATED_AT_ONCE = 1000


@dataclass(frozen=True, eq=False)
class Parts:
    """Everything that one training run works with. Without a sparsifier it trains a dense model.

    A model that was made larger has its `transform`, which says what it may keep.
    """

    config: TrainConfig
    model: nn.Module
    optimizer: Optimizer
    scheduler: LambdaLR
    sparsifier: Sparsifier | None
    transform: SparseIFT | None
    train: Batches
    validation: Batches
    test: Batches
    epochs: int
    task: Task

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * len(self.train)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.train.device


def build_parts(config: TrainConfig, dataset: Dataset, *, sparse: bool) -> Parts:
    """Build a run from a resolved config; the same config gives the same parts.

    Raises:
        ValueError: for what cannot be done, before anything is trained.
    """
    assert config.epochs is not None
    assert config.batch_size is not None
    model = build_initial(config, dataset)
    transform = _transform(config, model, dataset.shape) if sparse and config.transform != "none" else None
    model = model if transform is None else _placed(config, transform.model)
    train = Batches(
        dataset.train,
        dataset,
        config.batch_size,
        seed=config.seed,
        shuffle=True,
        augment=config.augment,
        device=config.device,
    )
    optimizer = _optimizer(config, model, transform)
    steps = config.epochs * len(train)
    sparsifier = _sparsifier(config, model, optimizer, steps, dataset.shape, transform) if sparse else None
    factor = partial(_cosine, steps) if config.lr_schedule == "cosine" else _constant
    scheduler = LambdaLR(optimizer, factor)
    validation, test = (evaluation_batches(split, dataset, config) for split in (dataset.validation, dataset.test))
    return Parts(
        config,
        model,
        optimizer,
        scheduler,
        sparsifier,
        transform,
        train,
        validation,
        test,
        config.epochs,
        dataset.task,
    )


def evaluation_batches(split: Split, dataset: Dataset, config: TrainConfig) -> Batches:
    """All examples of a split, in order, as many at a time as have about a thousand targets."""
    examples = max(1, _EVALUATED_AT_ONCE // split.targets[0].numel())
    return Batches(split, dataset, min(examples, len(split)), device=config.device)


def build_initial(config: TrainConfig, dataset: Dataset) -> nn.Module:
    """The model with its first weights, and torch's generator where training is to begin."""
    torch.manual_seed(config.seed)
    model = build_model(str(config.model), shape=dataset.shape, classes=len(dataset.classes), width=config.width)
    torch.manual_seed(derive_seed("training", config.seed))
    return _placed(config, model)


def _placed(config: TrainConfig, model: nn.Module) -> nn.Module:
    return with_channels_last(model.to(config.device))


def with_channels_last(model: nn.Module) -> nn.Module:
    """The model in the memory format in which runs have it.

    Pooling and, on a GPU, convolutions are faster where channels lie last; the mathematics is the same. But on a CPU
    without AVX-512, torch 2.13 writes outside of its memory in the backward pass of strided 1x1 convolutions of fewer
    than eight channels in that format, so that models with such layers are left as they are.
    """
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    if any(m.kernel_size == (1, 1) and max(m.stride) > 1 and m.in_channels < 8 for m in convolutions):
        return model
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _transform(config: TrainConfig, model: nn.Module, shape: tuple[int, ...]) -> SparseIFT:
    """A larger model with first weights of its own; torch's generator is left where training is to begin."""
    device = torch.device(config.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed("transform", config.seed))
        return sparse_ift(
            model,
            cast(Kind, config.transform),
            config.transform_sparsity,
            example_inputs=example_input(shape),
            include=config.include or None,
            exclude=config.exclude or None,
            inner=config.transform_inner,
        )


def _optimizer(config: TrainConfig, model: nn.Module, transform: SparseIFT | None) -> Optimizer:
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    lr = float(config.lr or 0.0)
    if config.optimizer == "sgd":
        return SGD(groups, lr=lr, momentum=config.momentum or 0.0)
    if transform is not None and transform.rates:
        groups = transform.parameter_groups(lr, float(config.weight_decay or 0.0))
    return (Adam if config.optimizer == "adam" else AdamW)(groups, lr=lr)


def _sparsifier(
    config: TrainConfig,
    model: nn.Module,
    optimizer: Optimizer,
    steps: int,
    shape: tuple[int, ...],
    transform: SparseIFT | None,
) -> Sparsifier:
    return Sparsifier(
        model,
        optimizer,
        method=config.build_method(),
        target=config.target if transform is None else transform.target,
        unit=config.unit,
        scope=config.scope if transform is None else transform.scope,
        steps=steps,
        schedule=config.phases,
        include=(config.include or None) if transform is None else transform.include,
        exclude=(config.exclude or None) if transform is None else None,
        example_inputs=example_input(shape, config.batch, device=config.device),
        floor=config.floor,
    )


def _cosine(steps: int, step: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(step, steps) / steps))


def _constant(step: int) -> float:
    return 1.0
