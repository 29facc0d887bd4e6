"""Where a run stands, on disk: written whole or not at all, and read without unpickling code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from setpoint.recipes.data.files import atomic_path

_FORMAT = 2


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or is of another run."""


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain values; torch's random states are added to it.

    A process killed at any moment leaves the last whole checkpoint.
    """
    whole = {"format": _FORMAT, "random": _random_state(), **state}
    with atomic_path(path) as part, part.open("wb") as file:
        torch.save(whole, file)
        file.flush()
        # Before the file takes its name, or a power cut could leave an empty one in place of the last.
        os.fsync(file.fileno())


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a state on the CPU and put torch's random states back; None if there is no file.

    Raises:
        CheckpointError: if the file is damaged or of another format.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load answers damage with a dozen different types.
        raise _unusable(path, f"it is damaged ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise _unusable(path, f"it is no setpoint checkpoint of format {_FORMAT}")
    _restore_random_state(state["random"])
    found: dict[str, Any] = state
    return found


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
