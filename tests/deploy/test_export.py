"""Compacted models in other runtimes, compared with torch there and not only by the export itself."""

import sys

import pytest
import torch
from rebuilding import FAMILIES, leaves
from torch import nn

import setpoint
from setpoint.deploy.export import OnnxModel
from setpoint.deploy.running import difference, rebatch

SMALL = ("lenet5", "resnet20", "decoder")
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def family(name):
    small, _, inputs = FAMILIES[name]()
    generator = torch.Generator().manual_seed(1)
    fresh = torch.randn(3, *inputs.shape[1:], generator=generator)
    return small, inputs, fresh if inputs.is_floating_point() else rebatch((inputs,), 3)[0].flip(0)


def close(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert tuple(one.shape) == tuple(other.shape)
        assert float((torch.as_tensor(one) - other).abs().max()) <= 1e-5 * float(other.abs().max())


@pytest.mark.parametrize("name", SMALL)
def test_onnx_agrees_at_other_batch_sizes(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, inputs, fresh = family(name)
    training = [m.training for m in model.modules()]
    path = setpoint.export(model, tmp_path / "model.onnx", inputs)
    assert [m.training for m in model.modules()] == training
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert isinstance(entry.shape[0], str), "the batch dimension is open"
    model.eval()
    for batch in (fresh[:1], fresh):
        close(session.run(None, {entry.name: batch.numpy()}), leaves(model, batch))


@pytest.mark.parametrize("name", SMALL)
def test_programs_and_compiled_models_agree(name, tmp_path):
    model, inputs, fresh = family(name)
    program = torch.export.load(setpoint.export(model, str(tmp_path / "model.pt2"), (inputs,)))
    model.eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    for batch in (fresh[:1], fresh):
        with torch.no_grad():
            close([program.module()(batch)], leaves(model, batch))
            close([compiled(batch)], leaves(model, batch))


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))


class Fixed(nn.Module):
    def forward(self, x):
        return x.view(4, 2, 3).sum(1)


def test_fixed_batches_must_be_said(tmp_path):
    with pytest.raises(ValueError, match=r"batch size is fixed: dynamic_batch=False"):
        setpoint.export(Fixed(), tmp_path / "model.pt2", X)
    path = setpoint.export(Fixed(), tmp_path / "model.pt2", X, dynamic_batch=False)
    assert torch.equal(torch.export.load(path).module()(X), Fixed()(X))


def test_one_example_is_enough_and_wrappers_are_seen_through(tmp_path):
    path = setpoint.export(nn.DataParallel(torch.compile(small())), tmp_path / "model.pt2", X[:1])
    assert torch.equal(torch.export.load(path).module()(X), small().eval()(X))


class Two(nn.Module):
    def forward(self, a, b, scale=None):
        return {"sum": a + b, "first": a.argmax(1)} if scale is None else a * scale


def test_several_inputs_and_outputs(tmp_path):
    pytest.importorskip("onnxruntime")
    path = setpoint.export(Two(), tmp_path / "model.onnx", (X, X.double(), None))
    total, first = OnnxModel(path)(X[:2], X[:2].double())
    assert torch.equal(total, 2 * X[:2].double())
    assert torch.equal(first, X[:2].argmax(1))
    with pytest.raises(ValueError, match=r"batch sizes \[3, 4\]; possible is one"):
        setpoint.export(Two(), path, (X, X[:3]))
    with pytest.raises(ValueError, match=r"batch sizes \[0, 4\]"):
        setpoint.export(Two(), path, (X, torch.tensor(1.0)))
    with pytest.raises(ValueError, match=r"batch sizes \[\]"):
        setpoint.export(Two(), path, ())


def test_lower_precision_is_held_to_its_own_steps(tmp_path):
    model = small().bfloat16()
    path = setpoint.export(model, tmp_path / "model.pt2", X.bfloat16())
    assert torch.export.load(path).module()(X.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("off", [3e-4, 3e-5])
def test_other_outputs_are_refused_and_leave_what_was_there(off, tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_text("the old one")

    def write(program, part):
        wrong = small().eval()
        with torch.no_grad():
            wrong[-1].weight.mul_(1 + off)
            wrong[-1].bias.mul_(1 + off)
        torch.export.save(torch.export.export(wrong, (X,), dynamic_shapes=({0: torch.export.Dim("b")},)), part)

    monkeypatch.setattr(sys.modules["setpoint.deploy.export"], "_write_program", write)
    if off < 1e-4:
        setpoint.export(small(), path, X)
        return
    with pytest.raises(RuntimeError, match=r"model\.pt2 was not written: .* differ from the model's by 0\.0003"):
        setpoint.export(small(), path, X)
    assert path.read_text() == "the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]


@pytest.mark.parametrize("method", ["gsp", "l0"])
def test_a_run_in_its_sparsify_phase_is_refused(method, tmp_path):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = setpoint.Schedule(begin=0, end=3)
    sparsifier = setpoint.Sparsifier(model, optimizer, method=method, target=0.5, steps=4, schedule=schedule)
    model(X).square().sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match=r"sparsify phase.*sparsifier\.freeze\(\)"):
        setpoint.export(torch.compile(model), tmp_path / "model.pt2", X)
    assert not list(tmp_path.iterdir())
    sparsifier.freeze()
    path = setpoint.export(model, tmp_path / "model.pt2", X)
    found = torch.export.load(path).module()(X)
    assert difference([model.eval()(X)], [found]) < 1e-6


def test_what_cannot_be_written(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"possible: \.onnx \(ONNX\), \.pt2"):
        setpoint.export(small(), tmp_path / "model.pt", X)
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        setpoint.export(small(), tmp_path / "none" / "model.pt2", X)
    with pytest.raises(ValueError, match="cannot trace"):
        setpoint.export(small(), tmp_path / "model.pt2", torch.zeros(4, 5))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'setpoint\[export\]'"):
        setpoint.export(small(), tmp_path / "model.onnx", X)
    assert not list(tmp_path.iterdir())


# Comparing


def test_differences():
    one = torch.tensor([1.0, -4.0])
    assert difference([one], [one.clone()]) == 0
    assert difference([one], [torch.tensor([1.0, -3.0])]) == 0.25
    assert difference([one, one * 100], [one, one * 100 + 8]) == pytest.approx(0.02)
    assert difference([one], []) == float("inf")
    assert difference([one], [one[:1]]) == float("inf")
    assert difference([one], [one * torch.nan]) == float("inf")
    assert difference([one * torch.nan], [one]) == float("inf")
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 2.0])
    assert difference([special], [special.clone()]) == 0
    assert difference([special], [special + 0.5]) == 0.25
    assert difference([special], [special.nan_to_num(posinf=5.0)]) == float("inf")
    assert difference([torch.zeros(2)], [torch.zeros(2)]) == 0
    assert difference([torch.zeros(2)], [torch.ones(2)]) > 1e30
    assert difference([torch.tensor([1])], [torch.tensor([2])]) == 0
    assert difference([], []) == 0


def test_rebatching():
    numbers = torch.arange(3)
    assert rebatch((numbers, 5, [numbers * 2], torch.tensor(1)), 5)[0].tolist() == [0, 1, 2, 0, 1]
    assert rebatch((numbers,), 2)[0].tolist() == [0, 1]
