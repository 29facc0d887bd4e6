"""What a run tells while it is under way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from setpoint.recipes.data import Task


@dataclass(frozen=True)
class EpochRow:
    """A row of metrics.csv: where the run stood at the end of an epoch.

    Attributes:
        epoch: counted from 1.
        step: optimizer steps taken so far.
        phase: dense, sparsify or frozen.
        lr: learning rate that the next step has.
        train_loss: mean over the epoch's batches.
        validation_loss: mean over the validation examples.
        validation_accuracy: fraction of the validation examples.
        sparsity: fraction of the sparse layers' entries that the last update left zero.
        requested: fraction of their cost that the budget asks to be gone by now; None where there is no budget.
        seconds: since the run began, interruptions not counted.
    """

    epoch: int
    step: int
    phase: str
    lr: float
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    sparsity: float
    requested: float | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values in the order of the columns."""
        return asdict(self)


COLUMNS = tuple(field.name for field in fields(EpochRow))


@dataclass(frozen=True)
class Progress:
    """A sign of life.

    Attributes:
        task: what is learnt, as `Dataset.task` has it.
        stage: "dense twin" or "sparse".
        phase: dense, sparsify or frozen.
        epoch: under way, counted from 1.
        epochs: of the run.
        step: taken so far.
        steps: of the run.
        loss: mean over the epoch's batches so far.
        validation_loss: after the last epoch; None before the first.
        validation_accuracy: likewise.
        sparsity: fraction of the sparse layers' entries that the last update left zero.
        remaining: seconds still to go, estimated; None before there is anything to go by.
        row: what was measured, where an epoch has just ended.
    """

    task: Task
    stage: str
    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    validation_loss: float | None
    validation_accuracy: float | None
    sparsity: float
    remaining: float | None
    row: EpochRow | None = None


Listener = Callable[[Progress], None]
