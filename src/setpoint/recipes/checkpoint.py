"""Where a run stands, on disk: written whole or not at all, checked whole, and read without unpickling code.

The file is torch's own, with a checksum of all of it behind: a bit that changed anywhere, and a byte more or less, are
found before anything is read. Both ways a block at a time.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from setpoint.writing import atomic_path, explained

_FORMAT = 2
_BLOCK = 1 << 20
# Of constant length, with the checksum's 64 digits between them.
_BEFORE, _BEHIND = b"\nsetpoint checkpoint, sha256 ", b"\n"
_SEAL_BYTES = len(_BEFORE) + 64 + len(_BEHIND)


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or is of another run."""


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain values; torch's random states are added to it.

    A process killed at any moment, and a disk that is full, leave the last whole checkpoint.

    Raises:
        OSError: if it cannot be written, saying why.
    """
    whole = {"format": _FORMAT, "random": _random_state(), **state}
    with atomic_path(path) as part, part.open("wb") as file:
        digesting = _Digesting(file)
        torch.save(whole, cast("IO[bytes]", digesting))
        file.write(_seal(digesting.digest.hexdigest()))


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a state on the CPU and put torch's random states back; None if there is no file.

    Raises:
        CheckpointError: if the file is damaged or of another format.
        OSError: if it cannot be read, saying why.
    """
    if not path.exists():
        return None
    with explained(f"cannot resume from {path}", beside=path), path.open("rb") as file:
        _check_seal(file, path)
        state = _load(file, path)
    try:
        _restore_random_state(state["random"])
    except (LookupError, TypeError, RuntimeError) as error:
        raise _unusable(path, f"it has no random states that torch takes ({error})") from error
    return state


class _Digesting:
    """A file that is written through, and its digest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _seal(digest: str) -> bytes:
    return _BEFORE + digest.encode() + _BEHIND


def _check_seal(file: BinaryIO, path: Path) -> None:
    left = os.fstat(file.fileno()).st_size - _SEAL_BYTES
    digest = hashlib.sha256()
    while left > 0 and (block := file.read(min(_BLOCK, left))):
        digest.update(block)
        left -= len(block)
    if left or file.read() != _seal(digest.hexdigest()):
        why = f"it is damaged or no setpoint checkpoint of format {_FORMAT}: its checksum is not that of its content"
        raise _unusable(path, why)
    file.seek(0)


def _load(file: BinaryIO, path: Path) -> dict[str, Any]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load answers what it cannot read with a dozen different types.
        raise _unusable(path, f"it is no checkpoint ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise _unusable(path, f"it is no setpoint checkpoint of format {_FORMAT}")
    return state


def _unusable(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"cannot resume from {path}: {why}; restore the file from a copy, or delete it to start this run from the "
        "beginning"
    )


def _random_state() -> dict[str, Any]:
    # Asking for the devices' states would start CUDA where it is not used.
    used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if used else []}


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    for index, device in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(device, index)
