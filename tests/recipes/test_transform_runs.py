"""Runs whose layers are made larger first: the dense twin stays as it was, and the model costs what the twin does."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

import setpoint
from setpoint.cli import main
from setpoint.recipes import Progress, TrainConfig, load_config, read_result, resolve, train_run
from setpoint.recipes.data import load_dataset
from setpoint.recipes.models import build_model
from setpoint.recipes.parts import build_parts
from setpoint.recipes.run_folder import default_folder, read_metrics
from setpoint.reporting import compare_table, group_runs, run_tables

QUICK = TrainConfig(
    model="convnet", width=0.25, epochs=2, method="magnitude", sparsity=None, transform="wide", dense_twin=False
)
KINDS = ("wide", "parallel", "factorized", "doped")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return setpoint.load(folder / "model.safetensors")


def text(table: object) -> str:
    console = Console(width=160, record=True, file=StringIO())
    console.print(table)
    return console.export_text()


@pytest.mark.parametrize(
    ("kind", "inner"), [*((kind, "linear") for kind in KINDS), ("parallel", "relu"), ("factorized", "norm-relu")]
)
def test_the_models_file_holds_what_the_transformation_promised(kind: str, inner: str, tmp_path: Path) -> None:
    result = train_run(replace(QUICK, transform=kind, transform_inner=inner), tmp_path / "run")
    made = result.transform
    assert made is not None
    assert (made["kind"], made["sparsity"]) == (kind, 0.75)
    assert 0.99 * made["dense_flops"] <= made["flops"] <= made["dense_flops"] < made["stored_flops"]
    assert result.report["exact"]
    assert result.parameters == made["parameters"] > made["dense_parameters"]
    assert result.parameters_kept <= made["parameters_kept"]
    dense = build_model("convnet", shape=(1, 8, 8), classes=10, width=0.25)
    assert made["dense_parameters"] == sum(p.numel() for p in dense.parameters())
    saved = weights(tmp_path / "run")
    for layer in result.report["layers"]:
        assert int(torch.count_nonzero(saved[layer["name"]])) == layer["params_kept"]
    assert set(made["left_dense"]) == {"conv1.weight", "fc.weight"}
    # What its config builds takes the file.
    parts = build_parts(load_config(tmp_path / "run/config.yaml"), load_dataset("digits", seed=0), sparse=True)
    setpoint.load(tmp_path / "run/model.safetensors", parts.model)
    assert read_result(tmp_path / "run/report.json") == result


def test_the_dense_twin_is_the_model_that_was_asked_for(tmp_path: Path) -> None:
    transformed = train_run(replace(QUICK, dense_twin=True), tmp_path / "wide")
    plain = train_run(replace(QUICK, dense_twin=True, transform="none", sparsity=0.5), tmp_path / "plain")
    assert transformed.dense_test_accuracy == plain.dense_test_accuracy
    assert transformed.dense_bytes == pytest.approx(plain.dense_bytes, rel=0.02)
    # It was trained once.
    assert len(list((tmp_path / "cache/setpoint/dense").iterdir())) == 1
    assert plain.transform is None


class StopError(Exception):
    pass


@pytest.mark.parametrize("kind", ["wide", "parallel"])
def test_a_run_that_was_stopped_ends_in_the_same_weights(kind: str, tmp_path: Path) -> None:
    config = replace(QUICK, transform=kind, checkpoint_every=5)
    train_run(config, tmp_path / "whole")

    def stop(progress: Progress) -> None:
        if progress.epoch == 1 and progress.row is not None:
            raise StopError

    with pytest.raises(StopError):
        train_run(config, tmp_path / "run", progress=stop)
    train_run(config, tmp_path / "run", resume=True)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_layers_can_be_chosen(tmp_path: Path) -> None:
    result = train_run(replace(QUICK, transform="doped", include=("conv3*",)), tmp_path / "run")
    assert [layer["name"] for layer in result.report["layers"]] == ["conv3.layer.weight"]


def test_first_weights_depend_on_the_seed_alone() -> None:
    data = load_dataset("digits", seed=0)
    config = resolve(QUICK)

    def weight(config: TrainConfig) -> torch.Tensor:
        with torch.random.fork_rng():
            return build_parts(config, data, sparse=True).model.conv2.weight.detach().clone()

    torch.manual_seed(1)
    one = weight(config)
    torch.rand(5)
    assert torch.equal(one, weight(config))
    assert not torch.equal(one, weight(replace(config, seed=1)))
    # As the model itself draws them: normal, by the fan out.
    assert float(one.std()) == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.1)


def test_reports_and_comparisons_show_it(tmp_path: Path) -> None:
    runs = []
    for kind, inner in (("wide", "linear"), ("doped", "linear"), ("factorized", "norm-relu")):
        train_run(replace(QUICK, transform=kind, transform_inner=inner), tmp_path / kind)
        runs.append(read_result(tmp_path / kind / "report.json").to_dict())
    made = runs[0]["transform"]
    shown = text(run_tables(runs[0]))
    assert "convnet, wide for 75 %, on digits: magnitude" in shown
    assert f"{made['dense_flops']:,} dense, {made['flops']:,} sparse" in shown
    assert f"{made['stored_flops']:,} ({made['stored_flops'] / made['dense_flops']:.2f} times the dense" in shown
    assert f"{made['dense_parameters']:,} dense, {made['parameters']:,} transformed" in shown
    assert "it reads the model's input: conv1.weight" in shown
    assert "convnet, factorized (norm-relu) for 75 %, on digits" in text(run_tables(runs[2]))
    compared = text(compare_table(group_runs(runs)))
    assert "transform wide" in compared
    assert "transform doped" in compared
    assert "transform_inner norm-relu" in compared
    config = resolve(QUICK)
    assert default_folder(config).name == "digits-convnet-magnitude-wide0.75-seed0"
    inside = replace(config, transform="parallel", transform_inner="relu")
    assert default_folder(inside).name == "digits-convnet-magnitude-parallel0.75-relu-seed0"


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "convnet", "--width", "0.25", "--epochs", "2", "--method", "magnitude", "--no-dense-twin"]
    run = str(tmp_path / "run")
    with pytest.raises(SystemExit) as done:
        main(["train", *options, "--transform", "wide", "--transform-sparsity", "0.5", "--out", run])
    assert not done.value.code
    assert "wide for 50 %" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "--resume", "--out", run])
    with pytest.raises(SystemExit):
        main(["report", run])
    assert "wide for 50 %" in capsys.readouterr().out
    with pytest.raises(SystemExit) as failed:
        main(["train", "--transform", "wide", "--out", str(tmp_path / "mlp")])
    assert failed.value.code == 2
    assert "what stays dense takes" in capsys.readouterr().err
    assert not (tmp_path / "mlp").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sparsity": 0.9}, "sparsity=0.9 was asked for, but transform='wide' says how much"),
        ({"hoyer": 0.5, "method": "gsp"}, "hoyer=0.5 was asked for"),
        ({"unit": "row"}, "unit='row' was asked for"),
        ({"scope": "erk"}, "scope='erk' was asked for"),
        ({"cost": "flops"}, "cost='flops' was asked for"),
        ({"transform": "broad"}, "transform='broad' is none of none, wide"),
        ({"transform_sparsity": 1.0}, "transform_sparsity=1.0 must lie strictly between 0 and 1"),
        ({"transform_inner": "tanh"}, "transform_inner='tanh' is none of linear, norm, relu, norm-relu"),
        ({"transform_inner": "relu"}, "is of the transformations parallel and factorized, not of 'wide'"),
        ({"transform": "none", "transform_inner": "norm"}, "parallel and factorized, not of 'none'"),
    ],
)
def test_what_contradicts_it_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **given)


def test_the_usual_sparsity_gives_way() -> None:
    assert TrainConfig.of({"transform": "doped"}).sparsity is None
    assert TrainConfig.of({"transform": "none"}).sparsity == 0.9


def test_progress_says_from_the_first_steps_on_how_many_zeros_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("setpoint.recipes.fit._SIGN_EVERY", 0.0)
    told: list[Progress] = []
    result = train_run(replace(QUICK, method="static"), tmp_path / "run", progress=told.append)
    assert told[0].epoch == 1
    assert told[0].row is None
    sparse = [p.sparsity for p in told if p.stage == "sparse"]
    assert set(sparse) == {1.0 - result.report["params_kept"] / result.report["params"]}


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_moving_supports_hold_the_count_in_the_file(method: str, tmp_path: Path) -> None:
    result = train_run(replace(QUICK, method=method, epochs=3), tmp_path / "run")
    assert result.report["exact"]
    saved = weights(tmp_path / "run")
    for layer in result.report["layers"]:
        assert int(torch.count_nonzero(saved[layer["name"]])) == layer["params_kept"]
    assert len({row.sparsity for row in read_metrics(tmp_path / "run/metrics.csv")}) == 1
