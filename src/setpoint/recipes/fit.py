"""The training loop, for dense and sparse models alike, from wherever its checkpoint left it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from setpoint.recipes.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from setpoint.recipes.evaluation import Score, cross_entropy, evaluate
from setpoint.recipes.parts import Parts
from setpoint.recipes.progress import EpochRow, Listener, Progress

# Seconds between two signs of life within an epoch: each waits for the device.
_SIGN_EVERY = 0.25


@dataclass
class Best:
    """The weights of the epoch that did best on the validation examples, among those that may be chosen."""

    epoch: int
    score: Score
    weights: dict[str, Tensor]


@dataclass
class Standing:
    """Where the run is: batches of an epoch that are done, and what was measured so far."""

    loss_sum: Tensor
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    best: Best | None = None
    rows: list[EpochRow] = field(default_factory=list)


class Fit:
    """Trains the parts of a run to the end.

    Args:
        parts: model, optimizer, data and, for a sparse run, the sparsifier.
        checkpoint: file to resume from and to keep up to date.
        listener: told of the progress several times a second.
    """

    def __init__(self, parts: Parts, checkpoint: Path, listener: Listener | None = None) -> None:
        self.parts = parts
        self.standing = Standing(torch.zeros((), dtype=torch.float64, device=parts.device))
        self._checkpoint = checkpoint
        self.listener = listener
        self._begun = self._told = time.perf_counter()

    def run(self) -> Standing:
        """Train, and leave the chosen weights in the model.

        Raises:
            CheckpointError: if there is a checkpoint and it is damaged or of another run.
            FloatingPointError: if the training diverges.
        """
        state = read_checkpoint(self._checkpoint)
        if state is not None:
            self._load(state)
        self._begun = time.perf_counter() - self.standing.seconds
        while self.standing.epoch < self.parts.epochs:
            self._train_epoch()
            self._end_epoch()
            self._save()
        best = self.standing.best
        assert best is not None, "the last epoch always ends in the phase that is chosen from"
        self.standing.seconds = self._seconds
        self.parts.model.load_state_dict(best.weights)
        return self.standing

    def _train_epoch(self) -> None:
        now, parts = self.standing, self.parts
        parts.model.train()
        last, since = len(parts.train), time.perf_counter()
        for inputs, targets in parts.train.epoch(now.epoch, start=now.batch):
            self._step(inputs, targets)
            now.batch += 1
            if self._step_number % parts.config.checkpoint_every == 0 and now.batch < last:
                now.step_seconds += time.perf_counter() - since
                self._save()
                since = time.perf_counter()
            if time.perf_counter() - self._told > _SIGN_EVERY:
                self._tell(None)
        float(now.loss_sum)  # the device may still be at work: wait for it before reading the clock
        now.step_seconds += time.perf_counter() - since

    def _step(self, inputs: Tensor, targets: Tensor) -> None:
        parts = self.parts
        parts.optimizer.zero_grad(set_to_none=True)
        reduced = parts.config.precision == "bfloat16"
        with torch.autocast(parts.device.type, torch.bfloat16, enabled=reduced):
            logits = parts.model(inputs)
        loss = cross_entropy(logits.float(), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        parts.optimizer.step()
        parts.scheduler.step()
        self.standing.loss_sum += loss.detach()

    def _end_epoch(self) -> None:
        now, parts = self.standing, self.parts
        if now.epoch + 1 == parts.epochs and parts.sparsifier is not None:
            # Steps that were skipped for gradients that are not finite may have kept it from getting there.
            parts.sparsifier.freeze()
        score = evaluate(parts.model, parts.validation)
        sparsity, requested = self._zeros()
        row = EpochRow(
            epoch=now.epoch + 1,
            step=self._step_number,
            phase=self._phase,
            lr=float(parts.scheduler.get_last_lr()[0]),
            train_loss=float(now.loss_sum) / len(parts.train),
            validation_loss=score.loss,
            validation_accuracy=score.accuracy,
            sparsity=sparsity,
            requested=requested,
            seconds=self._seconds,
        )
        now.rows.append(row)
        if self._phase == "frozen" or parts.sparsifier is None:
            self._choose(now.epoch + 1, score)
        self._tell(row)
        now.epoch, now.batch = now.epoch + 1, 0
        now.loss_sum.zero_()

    def _choose(self, epoch: int, score: Score) -> None:
        best, task = self.standing.best, self.parts.task
        if best is None or score.rank(task) >= best.score.rank(task):
            weights = {name: tensor.detach().clone() for name, tensor in self.parts.model.state_dict().items()}
            self.standing.best = Best(epoch, score, weights)

    def _zeros(self) -> tuple[float, float | None]:
        """Zeros as the last update left them, and what the budget asks for now."""
        sparsifier = self.parts.sparsifier
        if sparsifier is None:
            return 0.0, 0.0
        if sparsifier.target is not None and not sparsifier.target.has_budget and self.parts.config.scope == "global":
            return sparsifier.sparsity, None
        return sparsifier.sparsity, sparsifier.asked

    @property
    def _step_number(self) -> int:
        return self.standing.epoch * len(self.parts.train) + self.standing.batch

    @property
    def _phase(self) -> str:
        return "dense" if self.parts.sparsifier is None else self.parts.sparsifier.phase

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self._begun

    def _tell(self, row: EpochRow | None) -> None:
        if self.listener is None:
            return
        self._told = time.perf_counter()
        now, parts = self.standing, self.parts
        last = row or (now.rows[-1] if now.rows else None)
        to_go = parts.steps - self._step_number
        self.listener(
            Progress(
                task=parts.task,
                stage="dense twin" if parts.sparsifier is None else "sparse",
                phase=self._phase,
                epoch=now.epoch + 1,
                epochs=parts.epochs,
                step=self._step_number,
                steps=parts.steps,
                loss=float(now.loss_sum) / max(1, now.batch),
                validation_loss=None if last is None else last.validation_loss,
                validation_accuracy=None if last is None else last.validation_accuracy,
                sparsity=0.0 if parts.sparsifier is None else parts.sparsifier.sparsity,
                remaining=self._seconds / self._step_number * to_go if self._step_number else None,
                row=row,
            )
        )

    def _save(self) -> None:
        now, parts = self.standing, self.parts
        best = None if now.best is None else {**vars(now.best), "score": vars(now.best.score)}
        state = {
            "model": parts.model.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "scheduler": parts.scheduler.state_dict(),
            "loss_sum": now.loss_sum,
            "position": [now.epoch, now.batch, len(parts.train)],
            "seconds": [self._seconds, now.step_seconds],
            "best": best,
            "rows": [row.to_dict() for row in now.rows],
        }
        write_checkpoint(self._checkpoint, state)

    def _load(self, state: dict[str, Any]) -> None:
        batches = state.get("position", [None])[-1]
        if batches != len(self.parts.train):
            raise CheckpointError(
                f"{self._checkpoint} is of a run with {batches} batches an epoch; the data give "
                f"{len(self.parts.train)} now"
            )
        try:
            self._restore(state)
        except (LookupError, TypeError, RuntimeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{self._checkpoint} does not fit the run: {error}") from error

    def _restore(self, state: dict[str, Any]) -> None:
        now, parts = self.standing, self.parts
        parts.model.load_state_dict(state["model"])
        parts.optimizer.load_state_dict(state["optimizer"])
        parts.scheduler.load_state_dict(state["scheduler"])
        now.loss_sum.copy_(state["loss_sum"])
        now.epoch, now.batch, _ = state["position"]
        now.seconds, now.step_seconds = state["seconds"]
        best = state["best"]
        now.best = None if best is None else Best(best["epoch"], Score(**best["score"]), best["weights"])
        now.rows = [EpochRow(**row) for row in state["rows"]]
