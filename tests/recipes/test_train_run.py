"""A whole run in this process: what it leaves, what it refuses, and that its file repeats it."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import setpoint
from setpoint.deploy import read_metadata
from setpoint.methods import Magnitude, Units
from setpoint.recipes import Progress, RunResult, TrainConfig, load_config, read_result, train_run
from setpoint.recipes.drawing import draw_run
from setpoint.recipes.run_folder import RunFolder, read_updates, write_updates

QUICK = TrainConfig(epochs=4, width=0.25)
FILES = {
    "config.yaml",
    "dense_metrics.csv",
    "first_layer.png",
    "layers.png",
    "metrics.csv",
    "model.safetensors",
    "report.json",
    "training.png",
    "updates.csv",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "setpoint" / "dense"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return setpoint.load(folder / "model.safetensors")


def same(first: Path, second: Path) -> bool:
    one, two = weights(first), weights(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_leaves_all_its_files_and_meets_its_target(tmp_path: Path) -> None:
    seen: list[Progress] = []
    state = torch.get_rng_state()
    result = train_run(QUICK, tmp_path / "run", progress=seen.append)
    assert torch.equal(torch.get_rng_state(), state)
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES

    zeros = sum(int((weights(tmp_path / "run")[row["name"]] == 0).sum()) for row in result.report["layers"])
    assert zeros == round(0.9 * result.report["params"])
    assert result.report["exact"]
    assert result.bytes == (tmp_path / "run/model.safetensors").stat().st_size
    assert result.dense_bytes > 2 * result.bytes
    assert result.steps == 4 * 33
    assert {p.stage for p in seen} == {"dense twin", "sparse"}
    assert [p.row.epoch for p in seen if p.row is not None] == [1, 2, 3, 4] * 2


def test_the_report_is_strict_json_and_is_read_back(tmp_path: Path) -> None:
    result = train_run(QUICK, tmp_path / "run")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    report = json.loads((tmp_path / "run/report.json").read_text(), parse_constant=refuse)
    assert report["config"]["method"] == "gsp"
    assert read_result(tmp_path / "run/report.json") == result
    assert isinstance(result, RunResult)
    assert json.loads(read_metadata(tmp_path / "run/model.safetensors")["shape"]) == [1, 8, 8]


def test_metrics_have_a_row_an_epoch(tmp_path: Path) -> None:
    result = train_run(QUICK, tmp_path / "run")
    with (tmp_path / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["phase"]) for row in rows] == [
        ("1", "sparsify"),
        ("2", "frozen"),
        ("3", "frozen"),
        ("4", "frozen"),
    ]
    chosen = rows[result.chosen_epoch - 1]
    assert chosen["phase"] == "frozen"
    assert float(chosen["validation_accuracy"]) == result.validation_accuracy
    assert float(chosen["validation_loss"]) == result.validation_loss
    assert float(rows[-1]["sparsity"]) == result.report["sparsity"]
    assert float(rows[-1]["requested"]) == pytest.approx(result.report["sparsity"])


def gauged(self: Magnitude, units: Units) -> dict[str, float]:
    return {"progress": units.progress, "ramp": units.ramp}


def test_updates_have_a_row_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Magnitude, "gauges", gauged)
    result = train_run(replace(QUICK, method="magnitude", interval=4, dense_twin=False), tmp_path / "run")
    rows = read_updates(tmp_path / "run/updates.csv")
    # Of 132 steps, those from 13 to 66 sparsify.
    assert [row["step"] for row in rows] == list(range(17, 66, 4))
    assert all(list(row) == ["step", "asked", "zeros", "progress", "ramp"] for row in rows)
    for row in rows:
        assert row["progress"] == (row["step"] - 13) / 53
        assert row["ramp"] == pytest.approx(1 - (1 - row["progress"]) ** 3)
        assert row["asked"] == pytest.approx(row["ramp"] * result.report["requested"])
        assert row["zeros"] == pytest.approx(row["asked"], abs=1e-3)


def test_updates_are_read_as_they_were_written(tmp_path: Path) -> None:
    history = [
        {"step": 3, "asked": 0.1, "zeros": 1 / 3, "strength": 1e-300},
        {"step": 10**12, "asked": 0.1 + 0.2, "zeros": 1.0, "strength": float("nan"), "late": -2.5},
    ]
    write_updates(history, tmp_path / "updates.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["updates.csv"]
    first, second = read_updates(tmp_path / "updates.csv")
    assert math.isnan(first.pop("late"))
    assert first == history[0]
    assert isinstance(first["step"], int)
    assert second == pytest.approx(history[1], nan_ok=True, rel=0, abs=0)
    assert list(second) == ["step", "asked", "zeros", "strength", "late"]


def test_a_schedule_without_updates_leaves_no_file_of_them(tmp_path: Path) -> None:
    train_run(replace(QUICK, schedule="one-shot"), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES - {"updates.csv"}


def test_a_folder_from_before_there_were_updates_is_drawn(tmp_path: Path) -> None:
    result, folder = train_run(QUICK, tmp_path / "run"), RunFolder(tmp_path / "run")
    drawn = (folder.path / "training.png").read_bytes()
    draw_run(folder, result, (1, 8, 8))
    assert (folder.path / "training.png").read_bytes() == drawn
    folder.updates.unlink()
    draw_run(folder, result, (1, 8, 8))
    assert (folder.path / "training.png").read_bytes() != drawn
    assert not folder.updates.exists()


def test_the_runs_file_repeats_it(tmp_path: Path) -> None:
    config = replace(QUICK, unit="row", sparsity=0.5, method="magnitude", seed=3)
    first = train_run(config, tmp_path / "first")
    second = train_run(load_config(tmp_path / "first/config.yaml"), tmp_path / "second")
    assert same(tmp_path / "first", tmp_path / "second")
    assert first.report == second.report
    train_run(replace(config, seed=4), tmp_path / "other")
    assert not same(tmp_path / "first", tmp_path / "other")


def test_the_dense_twin_is_trained_once_and_does_not_touch_the_run(tmp_path: Path, cache: Path) -> None:
    first = train_run(QUICK, tmp_path / "first")
    stages: set[str] = set()
    second = train_run(replace(QUICK, method="magnitude"), tmp_path / "second", progress=lambda p: stages.add(p.stage))
    assert stages == {"sparse"}
    assert len(list(cache.iterdir())) == 1
    assert second.dense_test_accuracy == first.dense_test_accuracy
    assert second.dense_test_loss == first.dense_test_loss
    alone = train_run(replace(QUICK, dense_twin=False), tmp_path / "alone")
    assert alone.dense_test_accuracy is None
    assert alone.dense_test_loss is None
    assert same(tmp_path / "first", tmp_path / "alone")
    assert abs(alone.dense_bytes - first.dense_bytes) < 0.1 * first.dense_bytes


def test_a_damaged_twin_is_trained_anew(tmp_path: Path, cache: Path) -> None:
    first = train_run(QUICK, tmp_path / "first")
    (folder,) = cache.iterdir()
    (folder / "model.safetensors").write_bytes(b"damaged")
    second = train_run(QUICK, tmp_path / "second")
    assert second.dense_test_accuracy == first.dense_test_accuracy
    assert setpoint.load(folder / "model.safetensors")
    assert [path.name for path in cache.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    "changes",
    [
        {"unit": "2:4", "sparsity": None},
        {"unit": "4x4", "scope": "uniform", "sparsity": 0.5},
        {"hoyer": 0.7, "sparsity": None},
        {"hoyer": 0.5, "sparsity": 0.8},
        {"scope": {"fc1*": 0.9, "fc2*": 0.5}, "sparsity": None},
        {"end": 1.0, "schedule": "linear", "optimizer": "sgd"},
        {"lr_schedule": "constant", "optimizer": "adamw", "weight_decay": 0.1, "cost": "units"},
        {"model": "convnet", "unit": "filter", "sparsity": 0.5, "scope": "erk", "epochs": 2},
    ],
)
def test_whatever_is_asked_is_met(changes: dict[str, object], tmp_path: Path) -> None:
    result = train_run(replace(QUICK, dense_twin=False, **changes), tmp_path / "run")
    assert result.report["phase"] == "frozen"
    if result.config.hoyer is not None:
        assert result.report["hoyer"] >= result.config.hoyer - 1e-6
    if result.config.sparsity is not None or result.config.hoyer is None:
        assert result.report["exact"]


def test_a_folder_of_images(tmp_path: Path) -> None:
    for number, name in enumerate(("dark", "light")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(12):
            Image.new("RGB", (9, 9), (200 * number + index,) * 3).save(tmp_path / "pets" / name / f"{index}.png")
    config = TrainConfig(data=str(tmp_path / "pets"), model="convnet", width=0.25, epochs=2, batch_size=4, sparsity=0.5)
    result = train_run(config, tmp_path / "run")
    assert (result.data, result.report["exact"]) == ("pets", True)
    assert result.config.optimizer == "sgd"


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"run is there already: .*--resume.*--out"):
        train_run(QUICK, tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        train_run(QUICK, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    train_run(replace(QUICK, epochs=2, dense_twin=False), tmp_path / "empty")


def test_what_cannot_be_done_leaves_no_folder_and_trains_no_twin(tmp_path: Path, cache: Path) -> None:
    for wrong in ({"unit": "2:4", "sparsity": 0.9}, {"model": "nope"}, {"include": ("nope*",)}, {"batch_size": 10_000}):
        with pytest.raises(ValueError, match=r"nope|at most"):
            train_run(replace(QUICK, **wrong), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not cache.exists()


def test_in_bfloat16_the_weights_stay_in_float32_and_the_budget_is_met(tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()
    config = replace(QUICK, precision="bfloat16", dense_twin=False)

    def note(module: torch.nn.Module, inputs: object, output: object) -> None:
        if isinstance(module, torch.nn.Linear) and module.training and isinstance(output, torch.Tensor):
            seen.add(output.dtype)

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        result = train_run(config, tmp_path / "low")
    finally:
        handle.remove()
    full = train_run(replace(config, precision="float32"), tmp_path / "full")
    assert seen == {torch.bfloat16}
    assert result.report["exact"]
    assert not same(tmp_path / "low", tmp_path / "full")
    assert abs(result.test_accuracy - full.test_accuracy) < 0.05
    assert {t.dtype for t in setpoint.load(tmp_path / "low/model.safetensors").values()} == {torch.float32}
    with pytest.raises(ValueError, match="precision='half' is none of float32, bfloat16"):
        replace(config, precision="half")
