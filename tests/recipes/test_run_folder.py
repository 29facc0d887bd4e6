"""A run's folder is one process's, and what keeps a run from its files is told in a sentence."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

import setpoint
from setpoint.cli import main
from setpoint.locks import LOCKS, InUseError, claimed
from setpoint.recipes import Progress, TrainConfig, dense, train_run
from setpoint.recipes.run_folder import RunFolder
from setpoint.writing import PART

QUICK = TrainConfig(epochs=2, width=0.25, dense_twin=False, checkpoint_every=10)
COMMAND = ["--epochs", "2", "--width", "0.25", "--no-dense-twin", "--checkpoint-every", "10"]

locking = pytest.mark.skipif(not LOCKS, reason="there are no locks here")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 1) -> str:
    """The one line that a command which fails says."""
    with pytest.raises(SystemExit) as end:
        main(["train", *arguments])
    assert end.value.code == status
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


class StopError(Exception):
    pass


def stopped(folder: Path, config: TrainConfig = QUICK) -> None:
    """Leave an unfinished run."""

    def stop(progress: Progress) -> None:
        if progress.stage == "sparse" and progress.epoch == 2:
            raise StopError

    with pytest.raises(StopError):
        train_run(config, folder, progress=stop)


@locking
def test_a_second_run_in_the_folder_is_refused_naming_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    errors: list[Exception] = []

    def again(progress: Progress) -> None:
        for resume in () if errors else (False, True):
            with pytest.raises(InUseError, match=f"run is in use by process {os.getpid()}: wait") as caught:
                train_run(QUICK, tmp_path / "run", resume=resume)
            errors.append(caught.value)

    train_run(QUICK, tmp_path / "run", progress=again)
    assert errors
    assert not (tmp_path / "run/.lock").exists()
    stopped(tmp_path / "other")
    with claimed(tmp_path / "other/.lock"):
        said = complaint(capsys, "other", "--resume", status=2)
    assert f"other is in use by process {os.getpid()}: wait until it ends, or name another folder with --out" in said
    train_run(QUICK, tmp_path / "other", resume=True)


@locking
def test_of_runs_that_begin_at_once_one_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = RunFolder.check
    inner: list[object] = []

    def check(self: RunFolder, config: TrainConfig, *, resume: bool) -> None:
        checked(self, config, resume=resume)
        monkeypatch.setattr(RunFolder, "check", checked)
        inner.append(train_run(QUICK, tmp_path / "run"))  # another process, faster

    monkeypatch.setattr(RunFolder, "check", check)
    with pytest.raises(FileExistsError, match="run is there already"):
        train_run(QUICK, tmp_path / "run")
    stopped(tmp_path / "run2")

    def finish(self: RunFolder, config: TrainConfig, *, resume: bool) -> None:
        checked(self, config, resume=resume)
        monkeypatch.setattr(RunFolder, "check", checked)
        inner.append(train_run(QUICK, tmp_path / "run2", resume=True))

    monkeypatch.setattr(RunFolder, "check", finish)
    assert train_run(QUICK, tmp_path / "run2", resume=True) == inner[1]


def test_what_a_killed_process_leaves_does_not_stand_in_the_way(tmp_path: Path) -> None:
    for begun in (False, True):
        folder = tmp_path / f"run{begun}"
        if begun:
            stopped(folder)
        else:
            folder.mkdir()
        (folder / ".lock").write_text("1 elsewhere\n")
        (folder / f".half{PART}").write_text("half")
        train_run(QUICK, folder, resume=begun)
        assert not list(folder.glob(".*"))


def test_a_disk_that_takes_nothing_more_is_said_and_the_last_checkpoint_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, files, allowed = os.fsync, [], 4

    def full(descriptor: int) -> None:
        files.append(descriptor)
        if len(files) > allowed:
            raise OSError(errno.ENOSPC, "No space left on device")
        synced(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert complaint(capsys, "run", *COMMAND).endswith(": no space is left on the device\n")
    assert (tmp_path / "run/checkpoint.pt").exists()
    assert not list((tmp_path / "run").glob(".*"))
    resumed, whole = train_run(QUICK, tmp_path / "run", resume=True), train_run(QUICK, tmp_path / "whole")
    assert resumed.report == whole.report
    one, two = (setpoint.load(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_folders_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert "file is a file; name another folder with --out" in complaint(capsys, "file", *COMMAND)
    assert "a part of the path is a file, not a folder" in complaint(capsys, "file/run", *COMMAND)
    assert "the name is too long" in complaint(capsys, "x" * 300, *COMMAND)
    assert "the name is too long" in complaint(capsys, "/".join(["y" * 200] * 30), *COMMAND)
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["mkdir", "open"])
def test_a_folder_without_permission(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., object] = getattr(os, name)

    def refuse(path: object, *arguments: object, **options: object) -> object:
        if str(path).startswith("run"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, refuse)
        assert "error: cannot use run: permission is denied" in complaint(capsys, "run", *COMMAND)
    train_run(QUICK, tmp_path / "run")


# The dense twin


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("no folder")
    result = train_run(replace(QUICK, dense_twin=True), tmp_path / "run")
    assert result.dense_test_accuracy is not None
    assert "the dense twin could not be kept" in caplog.text


@pytest.mark.skipif(not LOCKS, reason="forks")
def test_processes_that_train_the_same_twin_at_once_keep_one_that_is_whole(tmp_path: Path) -> None:
    config, context = replace(QUICK, dense_twin=True), get_context("fork")
    barrier = context.Barrier(2)

    def run(name: str) -> None:
        torch.set_num_threads(1)
        barrier.wait(60)
        train_run(config, tmp_path / name)

    processes = [context.Process(target=run, args=(name,)) for name in ("first", "second")]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    stages: set[str] = set()
    train_run(config, tmp_path / "third", progress=lambda p: stages.add(p.stage))
    assert stages == {"sparse"}
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("first", "second", "third")]
    assert len({report["dense_test_loss"] for report in reports}) == 1


def test_a_twin_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    config = replace(QUICK, dense_twin=True)
    first = train_run(config, tmp_path / "first")
    (path,) = (tmp_path / "cache").rglob("model.safetensors")
    whole = path.read_bytes()
    place = whole.index(b"accuracy") + 15
    for damaged in (whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :], whole[:-1], b""):
        path.write_bytes(damaged)
        assert dense._read(path) is None
    assert train_run(config, tmp_path / "second").dense_test_loss == first.dense_test_loss
    assert dense._read(path) is not None
