"""Files that appear whole or not at all, and what keeps one from being written, in a sentence."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from setpoint.locks import LOCKS, is_at, lock

PART = ".part"
"""How the names of half-written files end."""

_REASONS = {
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EROFS: "the file system is read-only",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EISDIR: "it is a folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.ENOENT: "a part of the path does not exist",
}


@contextmanager
def atomic_path(destination: Path) -> Iterator[Path]:
    """Give a temporary path beside a file that takes its place on success and vanishes on an error.

    What stood at the destination stays until then, whatever happens. The entries are on the disk before the file has
    its name. A symbolic link is followed, so that it still is one afterwards. As long as it is written, the temporary
    file is locked, so that `sweep` can tell it from one that a killed process left.

    Args:
        destination: Path of the file, in a folder that exists.

    Raises:
        FileNotFoundError: If the folder does not exist.
        OSError: If the file cannot be written, with a sentence that says why; of the kind that Python has for it.
    """
    target = Path(os.path.realpath(destination))
    with explained(f"cannot write {destination}", beside=target):
        if not target.parent.is_dir():
            _refuse_folder(destination, target.parent)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "", str(target))
        part, held = _begin(target)
        try:
            yield part
            os.fsync(held.fileno())
            if not LOCKS:
                held.close()  # where there are no locks, a file that is open can have no other name
            # Last of all, or a power cut could leave an empty file in place of the last whole one.
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
            held.close()


@contextmanager
def explained(what: str, *, beside: Path | None = None) -> Iterator[None]:
    """Tell an operating system's error as a sentence: what could not be done, and why.

    The error keeps its kind and its number. Errors that carry no number have a sentence of their own and pass.

    Args:
        what: cannot be done, such as "cannot write x.csv".
        beside: the file that it is about; other files are named in the sentence.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.strerror is None:
            raise
        raise os_error(error.errno, f"{what}: {_reason(error, beside)}") from error


def os_error(number: int, sentence: str) -> OSError:
    """An operating system's error of the kind that Python has for a number, that says a sentence and nothing else."""
    error = type(OSError(number, ""))(sentence)
    error.errno = number
    return error


def is_failure(error: BaseException) -> bool:
    """Whether it is the machine's: it was not asked for something that is not there, and would not do it."""
    return isinstance(error, OSError) and error.errno not in (None, errno.ENOENT)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written in a folder, and nothing that a living process writes."""
    for part in folder.glob(f".*{PART}"):
        with suppress(OSError):  # it has just got its name, or is another's
            _sweep(part)


def _begin(target: Path) -> tuple[Path, BinaryIO]:
    """A new temporary file, locked."""
    while True:
        # Of a short name of its own: the destination's may be as long as the file system allows.
        part = target.with_name(f".{uuid4().hex}{PART}")
        held = part.open("xb")
        lock(held)
        if is_at(held, part):
            return part, held
        held.close()  # swept between the two


def _sweep(part: Path) -> None:
    if not LOCKS:
        part.unlink(missing_ok=True)  # refused by Windows as long as the file is open
        return
    with part.open("rb") as file:
        if lock(file):
            part.unlink(missing_ok=True)


def _refuse_folder(destination: Path, folder: Path) -> None:
    if folder.exists():
        raise os_error(errno.ENOTDIR, f"cannot write {destination}: {folder} is a file, not a folder")
    sentence = f"cannot write {destination}: the folder {folder} does not exist; create it first"
    raise FileNotFoundError(sentence)


def _reason(error: OSError, beside: Path | None) -> str:
    reason = _REASONS.get(error.errno or 0) or str(error.strerror).lower()
    own = error.filename is None or beside is None or Path(os.fsdecode(error.filename)).parent == beside.parent
    return reason if own else f"{reason}: {os.fsdecode(error.filename)}"
