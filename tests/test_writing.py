"""Files appear whole or not at all, and what keeps one from being written is told in a sentence."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

import setpoint
from setpoint import locks, writing
from setpoint.writing import PART, atomic_path, explained, os_error, sweep

NAME = "model.safetensors"
REASONS = {
    errno.ENOSPC: (OSError, "no space is left on the device"),
    errno.EDQUOT: (OSError, "the disk quota is used up"),
    errno.EACCES: (PermissionError, "permission is denied"),
    errno.EPERM: (PermissionError, "permission is denied"),
    errno.EROFS: (OSError, "the file system is read-only"),
    errno.EIO: (OSError, "input/output error"),
}


def save(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    return setpoint.save({"x": torch.randn(1000)}, folder / NAME)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("step", ["fsync", "replace", "open"])
@pytest.mark.parametrize("number", REASONS)
def test_what_the_system_refuses_is_said_and_leaves_all_as_it_was(
    number: int, step: str, existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if existing:
        save(tmp_path)
    before = contents(tmp_path)

    def refuse(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(*((Path, "open") if step == "open" else (os, step)), refuse)
        with pytest.raises(REASONS[number][0]) as caught:
            save(tmp_path, seed=1)
    assert str(caught.value) == f"cannot write {tmp_path / NAME}: {REASONS[number][1]}"
    assert caught.value.errno == number
    assert contents(tmp_path) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_in_the_middle(tmp_path: Path) -> None:
    before = contents(save(tmp_path).parent)

    def write() -> None:
        with atomic_path(tmp_path / NAME) as part:
            part.unlink()
            part.symlink_to("/dev/full")
            part.write_bytes(b"x" * 10_000)

    with pytest.raises(OSError, match=rf"^cannot write .*{NAME}: no space is left on the device$"):
        write()
    assert contents(tmp_path) == before


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path, kind, reason in (
        (tmp_path / "none" / NAME, FileNotFoundError, "the folder .*none does not exist; create it first"),
        (tmp_path / "file" / NAME, NotADirectoryError, ".*file is a file, not a folder"),
        (tmp_path / "file" / "more" / NAME, OSError, ""),
        (tmp_path / "folder", IsADirectoryError, "it is a folder"),
        (tmp_path / ("x" * 300), OSError, "the name is too long"),
        (tmp_path / ("x" * 300) / NAME, OSError, "the name is too long"),
    ):
        with pytest.raises(kind, match=f"^cannot write {path}: {reason}"):
            setpoint.save({"x": torch.ones(3)}, path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    longest = tmp_path / ("x" * 255)
    assert setpoint.load(setpoint.save({"x": torch.ones(3)}, longest))["x"].sum() == 3


def test_errors_of_what_is_written_pass(tmp_path: Path) -> None:
    for error in (KeyboardInterrupt(), ValueError("mine"), OSError("mine")):
        with pytest.raises(type(error), match=r"mine|^$"), atomic_path(tmp_path / NAME):
            raise error
    missing = pytest.raises(FileNotFoundError, match=r"a part of the path does not exist: /no/such$")
    with missing, atomic_path(tmp_path / NAME):
        Path("/no/such").read_bytes()
    assert not contents(tmp_path)


def test_sentences_keep_kind_and_number() -> None:
    error = os_error(errno.EACCES, "no")
    assert (type(error), error.errno, str(error)) == (PermissionError, errno.EACCES, "no")
    with pytest.raises(TimeoutError, match=r"^cannot: "), explained("cannot"):
        raise OSError(errno.ETIMEDOUT, "Timed out")


@contextmanager
def writing_slowly(folder: Path) -> Iterator[tuple[BaseProcess, Event]]:
    """A process that is in the middle of writing, and goes on when it is told."""
    context = get_context("fork")
    half, go_on = context.Event(), context.Event()

    def write() -> None:
        with atomic_path(folder / NAME) as part:
            part.write_bytes(b"half")
            half.set()
            go_on.wait()
            part.write_bytes(b"whole")

    process = context.Process(target=write)
    process.start()
    assert half.wait(60)
    yield process, go_on
    process.kill()
    process.join()


def test_what_a_living_process_writes_is_not_swept_and_what_a_dead_one_left_is(tmp_path: Path) -> None:
    (tmp_path / f".old{PART}").touch()
    (tmp_path / f"mine{PART}").touch()
    with writing_slowly(tmp_path) as (process, go_on):
        sweep(tmp_path)
        assert len(list(tmp_path.glob(f".*{PART}"))) == 1
        go_on.set()
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / NAME).read_bytes() == b"whole"
    with writing_slowly(tmp_path):
        pass
    assert len(list(tmp_path.glob(f".*{PART}"))) == 1
    sweep(tmp_path)
    assert sorted(contents(tmp_path)) == [f"mine{PART}", NAME]
    assert (tmp_path / NAME).read_bytes() == b"whole"


@pytest.mark.parametrize("fault", ["module", "system"])
def test_without_locks_files_are_written_all_the_same(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if fault == "module":  # as on Windows
        monkeypatch.delattr(locks, "fcntl")
        monkeypatch.setattr(locks, "LOCKS", False)
        monkeypatch.setattr(writing, "LOCKS", False)
    else:
        monkeypatch.setattr(locks.fcntl, "flock", refuse)
    assert save(tmp_path).exists()
    with locks.claimed(tmp_path / ".lock"):
        locks.check_free(tmp_path / ".lock")
    (tmp_path / f".old{PART}").touch()
    sweep(tmp_path)
    # Where a file system has none, nobody knows whose it is.
    assert sorted(contents(tmp_path)) == ([NAME] if fault == "module" else [f".old{PART}", NAME])
