"""Locks between processes, which the operating system takes back from a process that dies.

Where it has none (Windows, some network file systems), nothing is locked, and everything works as for a process alone.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    LOCKS = False
else:
    LOCKS = True


class InUseError(FileExistsError):
    """Another process works there."""


def lock(file: IO[Any]) -> bool | None:
    """Lock an open file for this process until it is closed.

    Returns:
        True if it is locked now, False if another process has locked it, None where there are no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, NameError):
        return None
    return True


def is_at(file: IO[Any], path: Path) -> bool:
    """Whether a path is that of an open file, which may have been removed, or replaced, in the meantime."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold a lock file as long as the context lasts; it says which process has it, and is removed in the end.

    One that a killed process left is taken over.

    Args:
        path: Of the lock file, in a folder that exists.

    Raises:
        InUseError: If another process holds it, naming the process.
    """
    file = _claim(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock is given back: afterwards it may be another's
        file.close()


def check_free(path: Path) -> None:
    """Raise InUseError if another process holds a lock file."""
    if path.exists():
        with path.open("rb") as file:
            if lock(file) is False:
                raise _in_use(path)


def _claim(path: Path) -> IO[bytes]:
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        if lock(file) is False:
            file.close()
            raise _in_use(path)
        if is_at(file, path):
            with suppress(OSError):  # on a full disk the name is missing, and the lock holds
                file.truncate(0)
                file.write(f"{os.getpid()} {platform.node()}\n".encode())
            return file
        file.close()  # its last owner removed it between the two


def _in_use(path: Path) -> InUseError:
    number, _, host = path.read_text(encoding="utf-8").strip().partition(" ")
    where = f" on {host}" if host and host != platform.node() else ""
    owner = f"process {number}{where}" if number else "another process"
    return InUseError(f"{path.parent} is in use by {owner}: wait until it ends, or name another folder with --out")
