"""The command that makes a run's model smaller."""

import json
from pathlib import Path

import pytest
import torch

from setpoint.cli import main
from setpoint.deploy import load
from setpoint.recipes.data import load_dataset
from setpoint.recipes.models import build_model


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_a_run_with_channels_is_made_smaller(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    asked = ["--model", "convnet", "--unit", "channel", "--cost", "flops", "--sparsity", "0.5", "--epochs", "4"]
    assert run("train", str(folder), *asked, "--no-dense-twin") == 0
    capsys.readouterr()
    assert run("compact", str(folder)) == 0
    assert "FLOPs, one example" in capsys.readouterr().out
    figures = json.loads((folder / "compact.json").read_text())
    costs = figures["costs"]
    assert costs["compact"]["flops"] <= 0.5 * costs["run"]["flops"]
    report = json.loads((folder / "report.json").read_text())
    assert figures["test_accuracy"] == pytest.approx(report["test_accuracy"], abs=0.003)
    weights = load(folder / "compact.safetensors")
    assert weights["conv2.weight"].shape[0] == figures["widths"]["conv2"]
    assert sum(weights[n].numel() for n, _ in _dense().named_parameters()) == costs["compact"]["parameters"]


def test_a_run_with_whole_layers_is_made_smaller(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    asked = ["--model", "resnet20", "--width", "0.25", "--unit", "layer", "--cost", "flops", "--budget", "0.6"]
    assert run("train", str(folder), *asked, "--epochs", "2", "--no-dense-twin", "--method", "wgsef") == 0
    assert "residual branches" in capsys.readouterr().out
    assert run("compact", str(folder)) == 0
    figures = json.loads((folder / "compact.json").read_text())
    costs = figures["costs"]
    assert costs["compact"]["flops"] <= 0.6 * costs["run"]["flops"]
    report = json.loads((folder / "report.json").read_text())
    assert costs["compact"]["flops"] == report["report"]["budgets"][0]["kept"]
    assert figures["gone"] == report["report"]["layers"][0]["gone"]
    weights = load(folder / "compact.safetensors")
    assert not any(name.startswith(f"{gone}.") for name in weights for gone in figures["gone"])
    assert len(figures["gone"]) == 7 - figures["widths"]["residual branches"]


def _dense() -> torch.nn.Module:
    dataset = load_dataset("digits", seed=0)
    return build_model("convnet", shape=dataset.shape, classes=len(dataset.classes), width=1.0)


def test_a_run_of_single_weights_cannot_be_made_smaller(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert run("train", str(folder), "--epochs", "2", "--no-dense-twin") == 0
    capsys.readouterr()
    assert run("compact", str(folder)) == 2
    assert "the run's unit is 'weight'" in capsys.readouterr().err
    assert run("compact", str(tmp_path)) == 2
    assert "holds no finished run" in capsys.readouterr().err
