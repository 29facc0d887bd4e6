"""A checkpoint that changed in any bit or byte is refused before anything of it is used."""

import os
import random
from pathlib import Path

import pytest
import torch

from setpoint.recipes import checkpoint
from setpoint.recipes.checkpoint import CheckpointError, read_checkpoint, write_checkpoint

STATE = {"model": {"weight": torch.arange(600.0).reshape(20, 30)}, "rows": [{"epoch": 1}], "position": [1, 2, 3]}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    write_checkpoint(tmp_path / "checkpoint.pt", STATE)
    return tmp_path / "checkpoint.pt"


def refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    state = torch.get_rng_state()
    with pytest.raises(CheckpointError, match=rf"cannot resume from {path}: it is .*delete it"):
        read_checkpoint(path)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_comes_back_and_torch_reads_it(path: Path) -> None:
    for found in (read_checkpoint(path), torch.load(path, weights_only=True)):
        assert found is not None
        assert torch.equal(found["model"]["weight"], STATE["model"]["weight"])
        assert found["rows"] == STATE["rows"]


def test_any_flipped_bit(path: Path) -> None:
    whole, draw = path.read_bytes(), random.Random(0)
    places = [draw.randrange(8 * len(whole)) for _ in range(200)] + list(
        range(8 * len(whole) - 8 * 95, 8 * len(whole), 3)
    )
    for place in places:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        refused(path, bytes(damaged))


def test_any_other_length(path: Path) -> None:
    whole, draw = path.read_bytes(), random.Random(0)
    for length in (0, 1, 93, 94, 95, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(50))):
        refused(path, whole[:length])
    for more in (b"\0", b"\n", whole[-94:], whole):
        refused(path, whole + more)
    for fewer in (whole[1:], whole[:500] + whole[501:], whole[:-95] + whole[-94:]):
        refused(path, fewer)


@pytest.mark.parametrize(
    "state", [[], {"format": 1}, {"format": checkpoint._FORMAT}, {"format": checkpoint._FORMAT, "random": {"cpu": 3}}]
)
def test_content_of_another_kind_with_a_right_checksum(
    state: object, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = torch.save
    monkeypatch.setattr(torch, "save", lambda _, file: saved(state, file))
    write_checkpoint(path, {})
    with pytest.raises(CheckpointError, match=r"cannot resume from .*: it .*delete it"):
        read_checkpoint(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_last_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, opened = path.read_bytes(), Path.open

    def full(self: Path, mode: str = "r", *args: object, **options: object) -> object:
        return opened(Path("/dev/full") if mode == "wb" else self, mode, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    for size in (3, 100_000):
        with pytest.raises(OSError, match=rf"^cannot write {path}: no space is left on the device$"):
            write_checkpoint(path, {"x": torch.zeros(size)})
    monkeypatch.undo()
    assert path.read_bytes() == whole
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_large_tensors_are_written_and_checked_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_BLOCK", 1000)
    write_checkpoint(tmp_path / "checkpoint.pt", STATE)
    assert read_checkpoint(tmp_path / "checkpoint.pt") is not None
