"""The command: its options, its files and its errors."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from setpoint.cli import main
from setpoint.cli_options import Given, merge, method_options
from setpoint.recipes import TrainConfig, load_config
from setpoint.recipes.run_folder import read_updates

QUICK = ["--epochs", "2", "--width", "0.25"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    """Run the command and return its exit status."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command which fails says."""
    assert run(*arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


def test_train_report_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", *QUICK) == 0
    out = capsys.readouterr().out
    assert "sparse:  frozen    epoch 2/2" in out
    assert "90 % of the weights" in out
    assert "(exact: yes)" in out
    assert "fc1.weight" in out
    assert run("train", *QUICK, "--out", "second", "--method", "magnitude") == 0
    capsys.readouterr()

    assert run("report", "runs/digits-mlp-gsp-0.9-seed0") == 0
    assert capsys.readouterr().out in out
    (tmp_path / "runs/digits-mlp-gsp-0.9-seed0/updates.csv").unlink()
    assert run("report", "runs/digits-mlp-gsp-0.9-seed0") == 0
    assert capsys.readouterr().out in out
    assert run("compare", "runs/digits-mlp-gsp-0.9-seed0", "second", "--out", "plot.png") == 0
    table = capsys.readouterr().out
    assert "gsp" in table
    assert "magnitude" in table
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("l0", ["--option", "lr=0.5", "--option", "restart=yes"]),
        ("hoyer", ["--option", "tolerance=0.02", "--option", "across=yes", "--unit", "row", "--sparsity", "0.5"]),
    ],
)
def test_methods_that_control_themselves(
    method: str, more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "run", *QUICK, "--method", method, *more) == 0
    out = capsys.readouterr().out
    assert f"mlp on digits: {method}, " in out
    assert "(exact: yes)" in out
    written = json.loads((tmp_path / "run/report.json").read_text())
    assert written["report"]["exact"]
    assert written["report"]["method"] == method
    assert run("report", "run") == 0
    assert capsys.readouterr().out in out
    assert run("train", "--resume", "--out", "run") == 0
    assert run("compare", "run", "--out", "plot.png") == 0
    assert method in capsys.readouterr().out


def test_methods_that_are_sparse_throughout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = [*QUICK, "--no-dense-twin", "--scope", "erk"]
    assert run("train", "rigl", *quick, "--method", "rigl", "--interval", "5", "--option", "drop-fraction=0.5") == 0
    assert run("train", "set", *quick, "--method", "set", "--end", "0.9") == 0
    assert run("train", "static", *quick, "--method", "static") == 0
    capsys.readouterr()
    assert run("compare", "rigl", "set", "static", "--out", "plot.png") == 0
    table = capsys.readouterr().out
    assert all(method in table for method in ("rigl", "set", "static"))
    rows = read_updates(tmp_path / "rigl/updates.csv")
    assert [row["step"] for row in rows[:3]] == [0, 5, 10]
    assert all(row["zeros"] == row["asked"] for row in rows)
    assert rows[1]["moved"] > 0.3
    assert len(read_updates(tmp_path / "static/updates.csv")) == 1
    assert (tmp_path / "static/training.png").stat().st_size > 10_000
    assert "'rigl' is sparse from the first step on" in complaint(
        capsys, "train", "dense", *quick, "--method", "rigl", "--begin", "0.1"
    )
    assert not (tmp_path / "dense").exists()


def test_every_field_is_an_option_but_the_methods_own() -> None:
    assert {f.name for f in fields(Given)} | {"options"} == {f.name for f in fields(TrainConfig)}


def test_options_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "epochs: 3\nwidth: 0.25\nseed: 5\nsparsity: 0.5\noptions: {vectors: row}\nbegin: 0\ndense_twin: false\n"
    )
    arguments = "--config mine.yaml --seed 7 --end 1.0 --no-augment --include fc1* --option scale-invariant=no"
    assert run("train", "other", *arguments.split()) == 0
    config = load_config(tmp_path / "other/config.yaml")
    assert (config.epochs, config.sparsity, config.seed, config.include) == (3, 0.5, 7, ("fc1*",))
    assert (repr(config.begin), repr(config.end), config.dense_twin) == ("0", "1.0", False)
    assert config.options == {"vectors": "row", "scale_invariant": False}
    assert not config.augment


def test_a_methods_options() -> None:
    assert method_options(["vectors=row", "scale-invariant=false", "level=1e1", "count=3", "name=a=b"]) == {
        "vectors": "row",
        "scale_invariant": False,
        "level": "1e1",
        "count": 3,
        "name": "a=b",
    }
    # YAML 1.1 takes it for text; whoever writes it means a number.
    assert TrainConfig(method="l0", options=method_options(["lr=1e-1"])).build_method().lr == 0.1
    with pytest.raises(ValueError, match="lr=fast: "):
        TrainConfig(method="l0", options={"lr": "fast"})
    base = {"method": "gsp", "options": {"vectors": "row"}}
    assert merge(base, {"options": {"measure": "zeros"}})["options"] == {"vectors": "row", "measure": "zeros"}
    assert "options" not in merge(base, {"method": "magnitude"})


def test_resume_takes_the_folders_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "run", *QUICK, "--sparsity", "0.5") == 0
    first = capsys.readouterr().out
    assert run("train", "--resume", "--out", "run") == 0
    assert capsys.readouterr().out in first
    assert run("train", "run", "--resume", "--sparsity", "0.5") == 0
    capsys.readouterr()
    assert "sparsity=0.5, and sparsity=0.6 was asked" in complaint(
        capsys, "train", "run", "--resume", "--sparsity", "0.6"
    )
    assert "run is there already" in complaint(capsys, "train", "run", *QUICK)
    assert "no run to resume in nowhere" in complaint(capsys, "train", "nowhere", "--resume")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --data /no/such/folder", "unknown data set '/no/such/folder'; possible are digits"),
        ("train --data .", "class folders; at least 2"),
        ("train --model nope", "unknown model 'nope'; possible are mlp"),
        ("train --method nope", "method='nope' is none of magnitude"),
        ("train --option colour=red", "possible are: measure"),
        ("train --option colour", "must be a key and a value"),
        ("train --method l0 --option colour=red", "possible are: lr, opening, proportional, integral, restart, seed"),
        (
            "train --method hoyer --option colour=red",
            "possible are: tolerance, start, proportional, integral, scale_invariant, across",
        ),
        ("train --method l0 --option opening=0.2", "l0 opening=0.2 must lie between 0.5 and 1"),
        ("train --method l0 --option integral=0", "integral=0 must be a number above 0"),
        ("train --method hoyer --option tolerance=2", "hoyer tolerance=2 must lie between 0 and 1"),
        ("train --method hoyer --option start=fast", "was given the options start=fast: "),
        ("train --method l0 --hoyer 0.8", "method 'l0' cannot meet a target hoyer=0.8"),
        ("train --method hoyer --hoyer 0.8", "method 'hoyer' cannot meet a target hoyer=0.8"),
        ("train --method hoyer --unit row --sparsity 0.99", "at most"),
        ("train --unit 2:4 --sparsity 0.9", "at most 0.5 is possible"),
        ("train --nope 1", "Unknown option: --nope"),
        ("train --epochs 1.5", "'1.5' is no whole number"),
        ("train --sparsity 90", "sparsity=90.0 must lie strictly between 0 and 1"),
        ("train --config missing.yaml", "missing.yaml"),
        ("train --config wrong.yaml", "wrong.yaml: unknown key 'sparsty'"),
        ("report missing", "missing has no report.json; it is no run's folder"),
        ("report damaged", "is no report of a run"),
        ("compare", "name the folders of the runs"),
        ("destroy", "Unknown command"),
    ],
)
def test_errors_are_one_line(arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.yaml").write_text("sparsty: 0.9")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/report.json").write_text("{")
    assert message in complaint(capsys, *arguments.split())
    assert not (tmp_path / "runs").exists()


def test_debug_shows_where_an_error_comes_from() -> None:
    with pytest.raises(ValueError, match="unknown model"):
        main(["train", "--model", "nope", "--debug"])


def test_an_interrupted_run_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("setpoint.recipes.live._Lines.__call__", interrupt)
        assert run("train", "run", *QUICK) == 130
    assert "setpoint train --resume --out run" in capsys.readouterr().err
    assert "is not finished: setpoint train --resume --out run" in complaint(capsys, "report", "run")
    assert run("train", "--resume", "--out", "run") == 0
    assert json.loads((tmp_path / "run/report.json").read_text())["report"]["exact"]


def test_the_module_is_a_command() -> None:
    command = [sys.executable, "-m", "setpoint", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip().count(".") == 2


def test_analyse_shows_groups_and_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("analyse", "resnet20", "--shape", "3x16x16", "--width", "0.25") == 0
    out = capsys.readouterr().out
    assert "layer1.0.conv1" in out
    assert "model output" in out
    assert "7 residual branches may go whole" in out
    assert "layer2.0: nothing would pass it by unchanged" in out
    assert run("analyse", "torch.nn:Identity") == 0
    capsys.readouterr()
    assert "cannot be made" in complaint(capsys, "analyse", "torch.nn:Nothing")
    assert "is no shape" in complaint(capsys, "analyse", "resnet20", "--shape", "large")


def test_a_comparison_is_drawn_as_png_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", str(tmp_path), "--out", str(tmp_path / "plot.txt")) == 2
    assert "ends in .png" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "plot.txt").exists()
