"""What a finished run comes to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from setpoint.recipes.config import TrainConfig
from setpoint.recipes.config_file import config_dict
from setpoint.recipes.data import Task
from setpoint.writing import atomic_path


@dataclass(frozen=True)
class RunResult:
    """The figures of a run. Accuracies are fractions of the targets; losses are cross-entropies, in nats a target.

    Attributes:
        config: what was asked, resolved.
        data: the data set that was found, such as cifar10-jpeg where cifar10 was asked for.
        task: what was learnt, as `Dataset.task` has it.
        report: of the sparsifier, on the chosen weights: `setpoint.Report.to_dict()`.
        parameters: entries of all the model's parameters, biases and norms as well.
        parameters_kept: how many are not zero.
        dense_validation_accuracy: of the dense twin; None where none was trained.
        dense_test_accuracy: likewise.
        dense_validation_loss: likewise; None as well where it is not finite, as all losses.
        dense_test_loss: likewise.
        validation_accuracy: of the chosen weights.
        test_accuracy: likewise; they were not chosen by it.
        validation_loss: of the chosen weights.
        test_loss: likewise; they were not chosen by it.
        chosen_epoch: whose weights were chosen, counted from 1.
        bytes: size of the sparse model's file.
        dense_bytes: size of a file of the dense model without zeros.
        steps: optimizer steps of the sparse run.
        seconds: of the sparse run, validation and checkpoints included, interruptions not.
        steps_per_second: in the training steps alone.
        transform: what a transformation made of the model, `setpoint.transforms.SparseIFT.to_dict()` without the
            layers; None where there was none.
    """

    config: TrainConfig
    data: str
    task: Task
    report: Mapping[str, Any]
    parameters: int
    parameters_kept: int
    dense_validation_accuracy: float | None
    dense_test_accuracy: float | None
    dense_validation_loss: float | None
    dense_test_loss: float | None
    validation_accuracy: float
    test_accuracy: float
    validation_loss: float | None
    test_loss: float | None
    chosen_epoch: int
    bytes: int
    dense_bytes: int
    steps: int
    seconds: float
    steps_per_second: float
    transform: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values that are strict JSON: None stands for numbers that are not finite."""
        whole = vars(self) | {"config": config_dict(self.config)}
        found: dict[str, Any] = finite(whole)
        return found


_ADAPTER = TypeAdapter(checked(RunResult, frozen=True, config=ConfigDict(extra="forbid")))


def write_result(result: RunResult, path: Path) -> None:
    """Write a result as JSON."""
    write_json(result.to_dict(), path)


def read_result(path: Path) -> RunResult:
    """Read what `write_result` wrote.

    Raises:
        ValueError: if the file is none of these.
        FileNotFoundError: if there is no such file.
    """
    try:
        read = _ADAPTER.validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise ValueError(f"{path} is no report of a run: {where}: {fault['msg']}".replace(": :", ":")) from None
    return RunResult(**vars(read))


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Write strict JSON, whole or not at all."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def finite(value: Any) -> Any:
    """The same values with None for NaN and infinite numbers, and lists for tuples."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(item) for item in value]
    return value
