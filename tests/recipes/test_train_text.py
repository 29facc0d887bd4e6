"""Language models: runs on a text, from the command line to the smaller model."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import setpoint
from setpoint.cli import main
from setpoint.recipes import TrainConfig, dump_config, load_config, read_result, resolve, train_run
from setpoint.recipes.checkpoint import write_checkpoint
from setpoint.recipes.evaluation import Score
from setpoint.recipes.models.gpt import GPT

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "that", "rat", "ran")


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text of its own, 8,000 bytes of words in any order."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    chosen = torch.randint(len(WORDS), (3000,), generator=torch.Generator().manual_seed(0))
    path = tmp_path / "own.txt"
    path.write_text(" ".join(WORDS[int(index)] for index in chosen)[:8000])
    return path


def quick(own: Path, **changes: Any) -> TrainConfig:
    asked = TrainConfig(data=str(own), width=0.25, context=16, epochs=2, batch_size=32, lr=3e-3, method="magnitude")
    return replace(asked, **changes)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_meets_its_target_and_leaves_embeddings_and_head_dense(own: Path, tmp_path: Path) -> None:
    result = train_run(quick(own), tmp_path / "run")
    assert (result.data, result.task, result.config.model) == ("own.txt", "language modelling", "gpt")
    weights = setpoint.load(tmp_path / "run/model.safetensors")
    sparse = {row["name"] for row in result.report["layers"]}
    matrices = {name for name, weight in weights.items() if weight.ndim == 2}
    assert matrices - sparse == {"tokens.weight", "positions.weight", "head.weight"}
    assert not any(bool((weights[name] == 0).any()) for name in matrices - sparse)
    zeros = sum(int((weights[name] == 0).sum()) for name in sparse)
    assert zeros == round(0.9 * sum(weights[name].numel() for name in sparse))
    assert result.report["exact"]
    assert {"training.png", "layers.png", "first_layer.png", "updates.csv"} < {
        p.name for p in (tmp_path / "run").iterdir()
    }
    assert read_result(tmp_path / "run/report.json") == result


def test_the_figures_are_those_of_the_saved_model(own: Path, tmp_path: Path) -> None:
    result = train_run(quick(own), tmp_path / "run")
    model = GPT(context=16, width=32).eval()
    setpoint.load(tmp_path / "run/model.safetensors", model)
    test = torch.tensor(list(own.read_bytes()[7200:]))
    losses, right = [], []
    for begin in range(0, len(test) - 16, 16):
        with torch.no_grad():
            logits = model(test[None, begin : begin + 16])[0]
        following = test[begin + 1 : begin + 17]
        losses.append(-logits.double().log_softmax(-1)[torch.arange(16), following])
        right.append(logits.argmax(-1) == following)
    assert len(losses) == 49
    assert result.test_loss == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    assert result.test_accuracy == pytest.approx(float(torch.cat(right).double().mean()))
    chosen = rows(tmp_path / "run")[result.chosen_epoch - 1]
    assert float(chosen["validation_loss"]) == result.validation_loss
    assert float(chosen["validation_accuracy"]) == result.validation_accuracy
    # Few steps, but far from the 8 bits of a byte of which nothing is known.
    assert result.dense_test_loss is not None
    assert result.dense_test_loss / math.log(2) < 6


@pytest.mark.parametrize(("data", "chosen"), [("text", 2), ("images", 3)])
def test_language_models_are_chosen_by_their_loss(
    data: str, chosen: int, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([Score(2.0, 0.1), Score(1.0, 0.2), Score(1.5, 0.3), Score(9.0, 0.25), Score(1.0, 0.5)])
    monkeypatch.setattr("setpoint.recipes.fit.evaluate", lambda *_: next(scores))
    config = quick(own) if data == "text" else TrainConfig(method="magnitude", width=0.1)
    result = train_run(replace(config, epochs=4, end=0.2, dense_twin=False), tmp_path / "run")
    assert result.chosen_epoch == chosen
    assert result.validation_loss == (1.0 if data == "text" else 1.5)


def test_a_loss_that_is_no_number_is_never_the_best() -> None:
    assert Score(math.nan, 1.0).rank("language modelling") < Score(100.0, 0.0).rank("language modelling")


class StopError(Exception):
    pass


def test_a_run_that_is_stopped_often_ends_in_the_same_weights(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(own, checkpoint_every=3, method="gsp")
    whole = train_run(config, tmp_path / "whole")
    # Without the twin of the whole run, so that both stages are stopped, within epochs and after them.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    written = 0

    def stop(path: Path, state: dict[str, Any]) -> None:
        nonlocal written
        write_checkpoint(path, state)
        written += 1
        if written in (2, 4, 10, 12, 13):
            raise StopError

    monkeypatch.setattr("setpoint.recipes.fit.write_checkpoint", stop)
    for tries in range(5):
        with pytest.raises(StopError):
            train_run(config, tmp_path / "broken", resume=tries > 0)
    result = train_run(config, tmp_path / "broken", resume=True)
    assert written == 16
    one, two = (setpoint.load(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (result.report, result.test_loss) == (whole.report, whole.test_loss)
    assert result.dense_test_loss == whole.dense_test_loss
    assert (tmp_path / "whole/updates.csv").read_bytes() == (tmp_path / "broken/updates.csv").read_bytes()


def test_the_command_on_a_users_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", "own.txt", "--model", "gpt", "--width", "0.25", "--epochs", "1"]
    assert run("train", *arguments) == 0
    out = capsys.readouterr().out
    for words in ("gpt on own.txt: gsp", "test bits per byte", " dense, ", " bits)", "(exact: yes)"):
        assert words in out
    folder = "runs/own.txt-gpt-gsp-0.9-seed0"
    assert load_config(tmp_path / folder / "config.yaml").exclude == ("head.weight",)
    assert run("train", *arguments, "--resume") == 0
    assert capsys.readouterr().out in out
    assert run("report", folder) == 0
    assert capsys.readouterr().out in out
    assert run("compare", folder, "--out", "plot.png") == 0
    assert "bits per byte" in capsys.readouterr().out
    assert run("compact", folder) == 2
    assert "the run's unit is 'weight'" in capsys.readouterr().err


@pytest.mark.parametrize(("unit", "cost", "sparsity"), [("neuron", "flops", 0.3), ("head", "params", 0.1)])
def test_what_goes_is_taken_out(
    unit: str, cost: str, sparsity: float, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = quick(own, unit=unit, cost=cost, sparsity=sparsity, dense_twin=False, epochs=2)
    result = train_run(config, tmp_path / "run")
    assert result.report["exact"]
    assert run("compact", "run") == 0
    assert "FLOPs, one example" in capsys.readouterr().out
    figures = json.loads((tmp_path / "run/compact.json").read_text())
    costs = figures["costs"]
    counted = {"flops": "flops", "params": "parameters"}[cost]
    assert 0.5 < costs["compact"][counted] / costs["run"][counted] <= 1 - sparsity
    assert figures["test_loss"] == pytest.approx(result.test_loss, rel=1e-4)
    small = setpoint.load(tmp_path / "run/compact.safetensors")
    assert sum(weight.numel() for weight in small.values()) == costs["compact"]["parameters"]
    name, rows = ("up", 1) if unit == "neuron" else ("attention.qkv", 3 * 8)
    for block in range(4):
        layer = f"blocks.{block}.{name}"
        assert len(small[f"{layer}.weight"]) == rows * figures["widths"][layer]


def test_what_does_not_go_together_is_refused(own: Path, tmp_path: Path) -> None:
    for wrong, message in (
        (quick(own, model="mlp"), "model 'mlp' takes images"),
        (TrainConfig(model="gpt"), "model 'gpt' takes texts"),
        (quick(own, context=1000), "own.txt: 8000 bytes are too few for context=1000"),
        (quick(own, unit="channel", sparsity=0.5), "no units of kind 'channel'"),
    ):
        with pytest.raises(ValueError, match=message):
            train_run(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="context=0 must be at least 1"):
        quick(own, context=0)


def test_the_last_layer_stays_dense_where_nothing_is_said_of_layers(own: Path, tmp_path: Path) -> None:
    head = ("head.weight",)
    for changes, expected in (
        ({}, head),
        ({"unit": "row"}, head),
        ({"exclude": ("blocks.0.*",)}, ("blocks.0.*",)),
        ({"include": ("*",)}, ()),
        ({"scope": {"head*": 0.5}}, ()),
        ({"unit": "neuron"}, ()),
    ):
        config = resolve(quick(own, **changes))
        assert config.exclude == expected
        dump_config(config, tmp_path / "config.yaml")
        assert load_config(tmp_path / "config.yaml") == config
    assert resolve(TrainConfig()).exclude == ()
    shakespeare = resolve(TrainConfig(data="tinyshakespeare"))
    assert (shakespeare.model, shakespeare.optimizer, shakespeare.weight_decay) == ("gpt", "adamw", 0.1)


def test_everything_can_be_included(own: Path, tmp_path: Path) -> None:
    config = quick(own, include=("*.weight", "tokens.weight"), dense_twin=False, epochs=1)
    layers = {row["name"] for row in train_run(config, tmp_path / "run").report["layers"]}
    assert {"head.weight", "tokens.weight", "blocks.3.down.weight"} < layers


def test_analyse_takes_a_number_of_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("analyse", "gpt", "--shape", "16", "--width", "0.25") == 0
    assert "blocks.0.up" in capsys.readouterr().out
