"""The runs of the comparison: what each is told, the folder it leaves, and which of them are finished."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from setpoint.recipes import TrainConfig, resolve, train_run
from setpoint.recipes.compacting import compact_run
from setpoint.recipes.config_file import config_dict
from setpoint.units import COUPLED

# By the name in the plot: the method and what its options are.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "magnitude": ("magnitude", {}),
    "gsp": ("gsp", {}),
    "wgsef": ("wgsef", {}),
    "l0": ("l0", {}),
    "hoyer": ("hoyer", {}),
    "gsp-paper-map": ("gsp", {"debias": False}),
    "wgsef-convex": ("wgsef", {"debias": False}),
}
DENSE_PRUNED, SMALL_DENSE = "dense-pruned", "small-dense"
BASELINES = (DENSE_PRUNED, SMALL_DENSE)


@dataclass(frozen=True)
class Mode:
    """What is compared: single weights, whole filters and neurons, or channels of the whole network.

    Attributes:
        settings: of every run, as `TrainConfig` has them.
        sparsities: that are asked for if the user names none.
        variants: that can be run.
        epochs: by model; a model that is not named is not run.
        counted: what the sparsity counts, in words.
    """

    settings: Mapping[str, Any]
    sparsities: tuple[float, ...]
    variants: tuple[str, ...]
    epochs: Mapping[str, int]
    counted: str


MODES = {
    "weights": Mode(
        {},
        (0.9, 0.95, 0.98, 0.99),
        (*VARIANTS, DENSE_PRUNED),
        {"lenet300": 20, "lenet5": 8},
        "weights",
    ),
    "structured": Mode(
        # The ten outputs stay.
        {"unit": "row", "cost": "units", "exclude": ("fc2.weight",)},
        (0.5, 0.7, 0.9),
        (*(name for name in VARIANTS if name not in ("gsp-paper-map", "wgsef-convex")), *BASELINES),
        {"lenet5": 4},
        "filters and hidden neurons",
    ),
    "channels": Mode(
        {"unit": "channel", "cost": "flops"},
        (0.5,),
        ("magnitude", "gsp", "wgsef", "l0", "hoyer"),
        {"resnet20": 14},
        "floating-point operations",
    ),
}

# The data set that each model is trained on.
DATA = {"lenet300": "mnist", "lenet5": "mnist", "resnet20": "cifar10"}


@dataclass(frozen=True)
class Task:
    """One run."""

    model: str
    mode: str
    variant: str
    sparsity: float
    seed: int
    epochs: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{stem(self.model, self.mode)}-{self.variant}-{self.sparsity}-{self.seed}"

    @property
    def config(self) -> TrainConfig:
        """What it is told, resolved; for a baseline, what the runs are told that it stands beside.

        Raises:
            ValueError: if the method is not there.
        """
        method, options = VARIANTS.get(self.variant, ("magnitude", {}))
        return resolve(
            TrainConfig(
                data=DATA[self.model],
                model=self.model,
                method=method,
                options=options,
                sparsity=self.sparsity,
                seed=self.seed,
                epochs=self.epochs,
                **MODES[self.mode].settings,
            )
        )

    @property
    def described(self) -> dict[str, Any]:
        """The config that its result shows."""
        if self.variant == DENSE_PRUNED:
            tuning = fine_tuning(self.config)
            options = {"fine_tune_epochs": tuning.epochs, "fine_tune_lr": tuning.lr}
            shape = {"schedule": tuning.schedule, "begin": tuning.begin, "end": tuning.end}
            return config_dict(self.config) | shape | {"method": self.variant, "options": options}
        if self.variant == SMALL_DENSE:
            return config_dict(narrow(self.config)) | {"method": self.variant}
        return config_dict(self.config)

    def run(self, runs: Path) -> dict[str, Any]:
        """Train, or go on where a stopped run is."""
        from methods_baselines import dense_pruned, small_dense

        folder = runs / self.name
        if self.variant == DENSE_PRUNED:
            return dense_pruned(self.config, self.described, folder)
        if self.variant == SMALL_DENSE:
            return small_dense(self.config, self.described, folder)
        result = train_run(self.config, folder, resume=(folder / "config.yaml").exists()).to_dict()
        if self.config.unit in COUPLED:
            compact_run(folder)
        return result


def stem(model: str, mode: str) -> str:
    """What the names of folders and results begin with."""
    return f"{DATA[model]}-{model}" if mode == "weights" else f"{DATA[model]}-{model}-{mode}"


def fine_tuning(config: TrainConfig) -> TrainConfig:
    """Half the epochs, from half the learning rate: what a method's frozen phase gets, all of it at the target."""
    assert config.epochs is not None
    assert config.lr is not None
    told = replace(config, method="magnitude", options={}, schedule="one-shot", begin=0, end=1)
    return replace(told, epochs=max(1, config.epochs // 2), lr=config.lr / 2)


def narrow(config: TrainConfig) -> TrainConfig:
    """The same model with every hidden width multiplied by the fraction that is to stay."""
    assert config.sparsity is not None
    return replace(config, width=round(1.0 - config.sparsity, 10))


def tasks_in(runs: Path, model: str, mode: str, epochs: int) -> Iterator[Task]:
    """The tasks that folders are named after."""
    prefix = stem(model, mode) + "-"
    for folder in sorted(runs.glob(f"{prefix}*-*-*")):
        variant, sparsity, seed = folder.name.removeprefix(prefix).rsplit("-", 2)
        if variant in MODES[mode].variants:
            yield Task(model, mode, variant, float(sparsity), int(seed), epochs)


def finished(task: Task, runs: Path) -> dict[str, Any] | None:
    """The result of a finished run, with its variant beside; None where there is none.

    Raises:
        ValueError: if the folder's run was told something else than the task is, or its method is not there.
    """
    report = runs / task.name / "report.json"
    if not report.exists():
        return None
    result: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    for key, value in task.described.items():
        if result["config"].get(key, value) != value:
            raise ValueError(f"the run in its folder has {key}={result['config'][key]!r}, not {value!r}")
    smaller = runs / task.name / "compact.json"
    compact = {"compact": json.loads(smaller.read_text(encoding="utf-8"))} if smaller.exists() else {}
    return {"variant": task.variant, **result, **compact}
