"""A run that is killed at any moment and resumed ends in the same weights, bit for bit."""

import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import setpoint
from setpoint.methods import Magnitude, Units
from setpoint.recipes import Progress, TrainConfig, read_result, train_run
from setpoint.recipes.checkpoint import CheckpointError, read_checkpoint, write_checkpoint

CONFIG = TrainConfig(epochs=12, checkpoint_every=7, width=0.5)
COMMAND = [sys.executable, "-m", "setpoint", "train", "--epochs", "12", "--checkpoint-every", "7", "--width", "0.5"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted, on one thread as those it is compared with."""
    folder = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        train_run(CONFIG, folder / "run")
    torch.set_num_threads(threads)
    return folder / "run"


def assert_same(first: Path, second: Path) -> None:
    """The same weights, and the same way there."""
    assert (first / "updates.csv").read_bytes() == (second / "updates.csv").read_bytes()
    one, two = (setpoint.load(folder / "model.safetensors") for folder in (first, second))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def test_sigkill_at_any_moment(whole: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    delays = random.Random(0)
    kills = 0
    process = subprocess.Popen([*COMMAND, "--out", str(broken)], stdout=subprocess.DEVNULL)
    for _ in range(3):
        wait_for(broken / "checkpoint.pt", process)
        time.sleep(delays.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process = subprocess.Popen([*COMMAND, "--out", str(broken), "--resume"], stdout=subprocess.DEVNULL)
    assert process.wait() == 0
    assert kills >= 1
    assert_same(whole, broken)
    assert not list(broken.glob("*checkpoint.pt"))
    assert not list(broken.glob(".*.part"))


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a checkpoint is written in this process's life, or the process has ended."""
    before = path.stat().st_mtime_ns if path.exists() else None
    while process.poll() is None and (not path.exists() or path.stat().st_mtime_ns == before):
        time.sleep(0.01)


class StopError(Exception):
    pass


@pytest.mark.parametrize(("stage", "epoch"), [("dense twin", 9), ("sparse", 1), ("sparse", 10)])
def test_an_exception_in_either_stage(stage: str, epoch: int, whole: Path, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if (progress.stage, progress.epoch) == (stage, epoch) and progress.row is not None:
            raise StopError

    with pytest.raises(StopError):
        train_run(CONFIG, tmp_path / "run", progress=stop)
    result = train_run(CONFIG, tmp_path / "run", resume=True)
    assert_same(whole, tmp_path / "run")
    expected = read_result(whole / "report.json")
    assert result.report == expected.report
    assert result.dense_test_accuracy == expected.dense_test_accuracy
    assert train_run(CONFIG, tmp_path / "run", resume=True) == result


def test_the_methods_gauges_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gauges(self: Magnitude, units: Units) -> dict[str, float]:
        return {"largest": max(float(m.max()) for m in units.magnitudes), "room": units.room}

    monkeypatch.setattr(Magnitude, "gauges", gauges)
    config = replace(CONFIG, method="magnitude", dense_twin=False)
    train_run(config, tmp_path / "whole")
    stopped(tmp_path / "run", config)
    path = tmp_path / "run/updates.csv"
    begun = path.read_bytes()
    assert begun.startswith(b"step,asked,zeros,largest,room\r\n")
    train_run(config, tmp_path / "run", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "run")
    assert len(path.read_bytes()) > len(begun)
    assert path.read_bytes().startswith(begun)


def test_a_support_that_moves_goes_on_where_it_was(tmp_path: Path) -> None:
    config = replace(CONFIG, method="rigl", scope="erk", interval=5, dense_twin=False)
    train_run(config, tmp_path / "whole")
    stopped(tmp_path / "run", config)
    train_run(config, tmp_path / "run", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "run")


def stopped(folder: Path, config: TrainConfig = CONFIG) -> None:
    """Leave an unfinished run."""

    def stop(progress: Progress) -> None:
        if progress.stage == "sparse" and progress.epoch == 3:
            raise StopError

    with pytest.raises(StopError):
        train_run(config, folder, progress=stop)


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    path = tmp_path / "run/checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"cannot resume from .*checkpoint.pt: it is damaged .*delete it"):
        train_run(CONFIG, tmp_path / "run", resume=True)
    torch.save({"format": 0}, path)
    with pytest.raises(CheckpointError, match="no setpoint checkpoint of format 2"):
        train_run(CONFIG, tmp_path / "run", resume=True)
    path.unlink()
    train_run(CONFIG, tmp_path / "run", resume=True)


def test_a_checkpoint_of_another_run_is_told(tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    text = (tmp_path / "run/config.yaml").read_text()
    for old, new, message in (
        ("width: 0.5", "width: 0.25", "does not fit the run"),
        ("method: gsp", "method: magnitude", "state is of another run: method was"),
        ("batch_size: 32", "batch_size: 64", "33 batches an epoch; the data give 16 now"),
    ):
        (tmp_path / "run/config.yaml").write_text(text.replace(old, new))
        key, value = new.split(": ")
        read = type(getattr(CONFIG, key)) if key == "method" else float if key == "width" else int
        with pytest.raises(CheckpointError, match=message):
            train_run(replace(CONFIG, **{key: read(value)}), tmp_path / "run", resume=True)


def test_what_is_asked_anew_must_be_what_was_asked(tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds a run with sparsity=0.9, and sparsity=0.5 was asked for"):
        train_run(replace(CONFIG, sparsity=0.5), tmp_path / "run", resume=True)
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        train_run(CONFIG, tmp_path / "nothing", resume=True)


def test_a_write_that_fails_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    assert read_checkpoint(path) is None
    write_checkpoint(path, {"value": torch.arange(3)})
    with pytest.raises(Exception, match="pickle"):
        write_checkpoint(path, {"value": lambda: None})
    state = read_checkpoint(path)
    assert state is not None
    assert state["value"].tolist() == [0, 1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
