"""The commands on runs and saved models: their tables, files and errors."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import setpoint
from setpoint.cli import main

FIGURES = {"parameters", "nonzero", "flops", "bytes", "latency_ms", "onnx_latency_ms"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with channels."""
    folder = tmp_path_factory.mktemp("runs") / "channels"
    asked = ["--model", "convnet", "--unit", "channel", "--cost", "flops", "--sparsity", "0.5", "--epochs", "2"]
    assert run("train", str(folder), *asked, "--width", "0.5", "--no-dense-twin") == 0
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


class Net(nn.Module):
    """With two hidden neurons that are zero throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        with torch.no_grad():
            for tensor in (self.first.weight, self.first.bias, self.second.weight.T):
                tensor[[1, 4]] = 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(self.embedding(tokens))))


def test_a_run_is_measured(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("measure", str(trained), "--repeats", "2") == 0
    out = capsys.readouterr().out
    for words in ("dense", "run", "compact", "not zero", "FLOPs, one example", "latency, batch 64", "costs.json"):
        assert words in out
    assert "onnxruntime" not in out
    figures = json.loads((trained / "costs.json").read_text())
    costs = figures["costs"]
    assert list(costs) == ["dense", "run", "compact"]
    assert all(set(cost) == FIGURES and set(cost["latency_ms"]) == {"1", "64"} for cost in costs.values())
    assert figures["threads"] == torch.get_num_threads()
    assert costs["run"]["flops"] == costs["dense"]["flops"]
    assert costs["run"]["nonzero"] < costs["dense"]["nonzero"]
    assert costs["compact"]["flops"] <= 0.5 * costs["run"]["flops"]
    assert run("compact", str(trained)) == 0
    compact = json.loads((trained / "compact.json").read_text())["costs"]["compact"]
    for name in ("parameters", "nonzero", "flops", "bytes"):
        assert compact[name] == costs["compact"][name]


def test_a_runs_smaller_model_is_exported(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", str(trained), "--to", "model.pt2") == 0
    assert "the same outputs as the compact model: model.pt2" in capsys.readouterr().out
    assert run("compact", str(trained)) == 0
    small = setpoint.load_model(trained / "compact.safetensors").eval()
    x = torch.randn(5, 1, 8, 8)
    assert torch.allclose(torch.export.load(tmp_path / "model.pt2").module()(x), small(x), atol=1e-5)
    # The file says what its model is called with.
    assert run("export", str(trained / "compact.safetensors"), "--to", "again.pt2") == 0
    assert "the same outputs as the model: again.pt2" in capsys.readouterr().out
    assert run("measure", str(trained / "compact.safetensors"), "--repeats", "1") == 0
    assert list(json.loads((trained / "compact.costs.json").read_text())["costs"]) == ["model"]
    assert "no unit in it is zero" in complaint(capsys, "compact", str(trained / "compact.safetensors"))


def test_latency_in_onnxruntime(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    source = trained / "model.safetensors"
    assert run("measure", str(source), "--repeats", "1", "--onnx") == 0
    assert "onnxruntime, batch 64" in capsys.readouterr().out
    costs = json.loads((trained / "model.costs.json").read_text())["costs"]
    assert list(costs) == ["model", "compact"]
    assert all(set(cost["onnx_latency_ms"]) == {"1", "64"} for cost in costs.values())
    assert run("export", str(source), "--to", "model.onnx") == 0


def test_a_file_is_made_smaller(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Net()
    setpoint.save(model, tmp_path / "net.safetensors", metadata={"run": "7"})
    assert "give the shape of one example" in complaint(capsys, "compact", "net.safetensors")
    assert "is no shape such as 3x32x32" in complaint(capsys, "compact", "net.safetensors", "--shape", "5:tokens")
    assert run("compact", "net.safetensors", "--shape", "5:int64") == 0
    assert "net.compact.safetensors" in capsys.readouterr().out
    small = setpoint.load_model(tmp_path / "net.compact.safetensors")
    assert small.first.weight.shape == (4, 4)
    tokens = torch.randint(9, (3, 5))
    assert torch.allclose(small(tokens), model(tokens), atol=1e-6)
    assert setpoint.deploy.read_metadata("net.compact.safetensors") == {"run": "7", "shape": "5:int64"}
    costs = json.loads((tmp_path / "net.compact.costs.json").read_text())["costs"]
    assert (costs["compact"]["parameters"], costs["model"]["parameters"]) == (36 + 20 + 15, 36 + 30 + 21)
    assert run("compact", "net.safetensors", "--shape", "5:int64", "--to", "other.safetensors") == 0
    assert (tmp_path / "other.safetensors").exists()


def test_a_file_needs_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "somebodys.py").write_text("from torch import nn\n\nclass Net(nn.Linear):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    setpoint.save(__import__("somebodys").Net(3, 2), tmp_path / "net.safetensors")
    monkeypatch.delitem(sys.modules, "somebodys")
    assert "code in somebodys, which is not imported" in complaint(capsys, "measure", "net.safetensors", "--shape", "3")
    assert run("measure", "net.safetensors", "--shape", "3", "--trust", "somebodys", "--repeats", "1") == 0


class Answer:
    """Of a kind that torch.export does not know."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


class Answering(nn.Linear):
    def forward(self, x: torch.Tensor) -> Answer:  # type: ignore[override]
        return Answer(super().forward(x))


def test_what_cannot_be_traced_is_measured_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    setpoint.save(Answering(3, 3), "net.safetensors")
    assert run("measure", "net.safetensors", "--shape", "3", "--repeats", "1") == 0
    assert "no smaller model: it is not known which units could be taken out" in capsys.readouterr().out
    assert "cannot trace" in complaint(capsys, "compact", "net.safetensors", "--shape", "3")


def test_what_cannot_be_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("setpoint.deploy.measure.count_flops", refuse)
    setpoint.save(Net(), "net.safetensors")
    assert "the operations of Net cannot be counted: no such operator" in complaint(
        capsys, "measure", "net.safetensors", "--shape", "5:int64"
    )
    # The smaller model is there all the same, and said to be.
    assert run("compact", "net.safetensors", "--shape", "5:int64") == 2
    assert "model: net.compact.safetensors" in capsys.readouterr().out
    assert Path("net.compact.safetensors").exists()


def test_runs_and_files_that_are_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds no finished run" in complaint(capsys, "measure", str(tmp_path))
    assert "nothing.safetensors" in complaint(capsys, "measure", "nothing.safetensors")
    assert "into its folder" in complaint(capsys, "compact", str(trained), "--to", "x.safetensors")
    assert "possible: .onnx" in complaint(capsys, "export", str(trained), "--to", "model.pt")
    assert "repeats=0" in complaint(capsys, "measure", str(trained), "--repeats", "0")
    setpoint.save(nn.Linear(2, 2).state_dict(), "weights.safetensors")
    assert "holds a state dict" in complaint(capsys, "export", "weights.safetensors", "--to", "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'setpoint[export]'" in complaint(capsys, "export", str(trained), "--to", "model.onnx")


def test_a_run_of_single_weights_has_no_smaller_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "weights", "--epochs", "1", "--width", "0.25", "--no-dense-twin") == 0
    assert run("measure", "weights", "--repeats", "1") == 0
    assert "no smaller model: the run's unit is 'weight'" in capsys.readouterr().out
    costs = json.loads((tmp_path / "weights/costs.json").read_text())["costs"]
    assert list(costs) == ["dense", "run"]
    assert run("export", "weights", "--to", "model.pt2") == 0
    assert "the same outputs as the run model" in capsys.readouterr().out
