"""The folder that a run leaves: what lies where in it, and who may write there."""

from __future__ import annotations

import csv
import errno
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setpoint.locks import check_free, claimed
from setpoint.recipes.config import TrainConfig
from setpoint.recipes.config_file import config_dict, dump_config, load_config
from setpoint.recipes.progress import COLUMNS, EpochRow
from setpoint.recipes.result import finite
from setpoint.writing import PART, atomic_path, explained, os_error, sweep


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's files."""

    path: Path

    @property
    def config(self) -> Path:
        """Repeats the run: `setpoint train --config`."""
        return self.path / "config.yaml"

    @property
    def model(self) -> Path:
        """The chosen weights."""
        return self.path / "model.safetensors"

    @property
    def metrics(self) -> Path:
        """A row for each epoch."""
        return self.path / "metrics.csv"

    @property
    def updates(self) -> Path:
        """A row for each update of the sparsify phase, and for a first support; not there if there is none."""
        return self.path / "updates.csv"

    @property
    def dense_metrics(self) -> Path:
        """The same for the dense twin."""
        return self.path / "dense_metrics.csv"

    @property
    def report(self) -> Path:
        """The figures. Written last: where it is, the run is finished."""
        return self.path / "report.json"

    @property
    def checkpoint(self) -> Path:
        """Where an unfinished run stands."""
        return self.path / "checkpoint.pt"

    @property
    def dense_checkpoint(self) -> Path:
        """Where the dense twin stands."""
        return self.path / "dense_checkpoint.pt"

    @property
    def lock(self) -> Path:
        """Held by the process that trains here, whose number is in it."""
        return self.path / ".lock"

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.report.exists()

    def check(self, config: TrainConfig, *, resume: bool) -> None:
        """Refuse a folder that is in use, or that holds another run than the one to resume.

        Raises:
            FileExistsError: if another process works in the folder, or if there is something in it and it is not to be
                resumed.
            FileNotFoundError: if there is no run to resume.
            ValueError: if the run to resume was told something else, naming the field.
        """
        with explained(f"cannot use {self.path}"):
            check_free(self.lock)
            self._check_content(config, resume)

    def _check_content(self, config: TrainConfig, resume: bool) -> None:
        if resume:
            self._check_same(config)
        elif self.path.exists() and not self.path.is_dir():
            raise os_error(errno.EEXIST, f"{self.path} is a file; name another folder with --out")
        elif self.path.exists() and not all(self._is_left_over(path) for path in self.path.iterdir()):
            raise FileExistsError(
                f"{self.path} is there already: continue its run with --resume, or name another folder with --out"
            )

    def _is_left_over(self, path: Path) -> bool:
        """Whether a file is what a process leaves that was killed before its run had begun."""
        return path == self.lock or (path.name.startswith(".") and path.suffix == PART)

    def _check_same(self, config: TrainConfig) -> None:
        there, here = config_dict(self.read_config()), config_dict(config)
        for key, value in here.items():
            if there[key] != value:
                raise ValueError(
                    f"{self.path} holds a run with {key}={there[key]!r}, and {key}={value!r} was asked for: leave it "
                    "out to resume that run, or name another folder with --out"
                )

    def read_config(self) -> TrainConfig:
        """The config of the run in the folder.

        Raises:
            FileNotFoundError: if there is no run in it.
        """
        if not self.config.exists():
            raise FileNotFoundError(f"there is no run to resume in {self.path}: it has no {self.config.name}")
        return load_config(self.config)

    @contextmanager
    def opened(self, config: TrainConfig, *, resume: bool) -> Iterator[None]:
        """Keep the folder to this process as long as the context lasts.

        The folder is made where there is none, and cleared of what a killed process left half written. A process that
        dies gives it back.

        Raises:
            FileExistsError: as `check`, if another process was there first.
            OSError: if the folder cannot be made or written, saying why.
        """
        with ExitStack() as stack:
            with explained(f"cannot use {self.path}"):
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(claimed(self.lock))
                # Again: another process may have begun a run here, and ended it, since the first check.
                self._check_content(config, resume)
                sweep(self.path)
            if not self.config.exists():
                dump_config(config, self.config)
            yield

    def end(self) -> None:
        """Drop what only an unfinished run needs."""
        for checkpoint in (self.checkpoint, self.dense_checkpoint):
            checkpoint.unlink(missing_ok=True)


def write_metrics(rows: Sequence[EpochRow], path: Path) -> None:
    """Write rows as CSV; fields that have no finite value are empty."""
    _write_table([row.to_dict() for row in rows], COLUMNS, path)


def read_metrics(path: Path) -> list[EpochRow]:
    """Read what `write_metrics` wrote; empty fields become NaN, or None where that is possible."""
    with path.open(newline="", encoding="utf-8") as file:
        return [_row(fields) for fields in csv.DictReader(file)]


def write_updates(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write a sparsifier's history as CSV: step, asked, zeros and the method's gauges; empty as in the metrics."""
    _write_table(history, list(dict.fromkeys(key for row in history for key in row)), path)


def read_updates(path: Path) -> list[dict[str, float]]:
    """Read what `write_updates` wrote; empty fields become NaN."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{key: float(value or "nan") for key, value in fields.items()} for fields in csv.DictReader(file)]
    return [row | {"step": int(row["step"])} for row in rows]


def copy_file(source: Path, destination: Path) -> None:
    """Copy a file, whole or not at all."""
    with atomic_path(destination) as part:
        shutil.copyfile(source, part)


def _write_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], path: Path) -> None:
    with atomic_path(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(finite(row) for row in rows)


def _row(fields: dict[str, str]) -> EpochRow:
    numbers = {key: float(value or "nan") for key, value in fields.items() if key != "phase"}
    whole = {key: int(numbers.pop(key)) for key in ("epoch", "step")}
    requested = numbers.pop("requested") if fields["requested"] else None
    numbers.pop("requested", None)
    return EpochRow(phase=fields["phase"], requested=requested, **whole, **numbers)  # type: ignore[arg-type]


def default_folder(config: TrainConfig) -> Path:
    """Where a resolved config's run goes if no folder is named: what tells it from others is in the name."""
    parts = [Path(config.data).name, config.model, config.method, f"{config.sparsity:g}" if config.sparsity else None]
    parts += [None if config.budget is None else f"{config.budget:g}{config.cost}"]
    parts += [None if config.transform == "none" else f"{config.transform}{config.transform_sparsity:g}"]
    parts += [None if config.transform_inner == "linear" else config.transform_inner]
    parts += [None if config.unit == "weight" else config.unit.replace(":", "of")]
    parts += [None if config.hoyer is None else f"hoyer{config.hoyer:g}", f"seed{config.seed}"]
    return Path("runs") / "-".join(part for part in parts if part)
