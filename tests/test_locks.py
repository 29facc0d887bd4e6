"""A lock file is one process's, until it ends, however it ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from setpoint.locks import LOCKS, InUseError, check_free, claimed

pytestmark = pytest.mark.skipif(not LOCKS, reason="there are no locks here")


@contextmanager
def holding(path: Path) -> Iterator[BaseProcess]:
    """A process that holds a lock file."""
    context = get_context("fork")
    held, done = context.Event(), context.Event()

    def hold() -> None:
        with claimed(path):
            held.set()
            done.wait()

    process = context.Process(target=hold)
    process.start()
    assert held.wait(60)
    yield process
    process.kill()
    process.join()


def test_another_process_is_named_and_a_dead_one_forgotten(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with holding(path) as process:
        for attempt in (check_free, lambda p: claimed(p).__enter__()):
            with pytest.raises(InUseError, match=rf"{tmp_path} is in use by process {process.pid}: wait"):
                attempt(path)
    assert path.exists()
    check_free(path)
    with claimed(path):
        assert path.read_text().split()[0] == str(os.getpid())
    assert not path.exists()


def test_one_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with claimed(path), pytest.raises(InUseError, match=f"process {os.getpid()}"), claimed(path):
        pass
    with pytest.raises(KeyError), claimed(path):
        raise KeyError
    with claimed(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_was_removed_meanwhile_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened = tmp_path / ".lock", os.open

    def remove(*args: object) -> int:
        number = opened(*args)  # type: ignore[arg-type]
        monkeypatch.setattr(os, "open", opened)
        path.unlink()  # as its last owner does
        return number

    monkeypatch.setattr(os, "open", remove)
    with claimed(path), pytest.raises(InUseError):
        check_free(path)
