"""Which layers get which kernels, by the times of a timer that we write ourselves."""

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import setpoint
from setpoint.deploy import use_sparse_kernels
from setpoint.deploy.kernels import Race, SparseLinear, SparsePointwise, choose, registry, trial
from setpoint.deploy.kernels.matrices import CompressedMatrix

X = torch.randn(5, 32)


class FakeTimer:
    """Answers with seconds from tables: one for each layer timed, in order, then one for each whole model."""

    def __init__(self, layers, models=({"dense": 3.0, "sparse": 1.0},)):
        self.layers, self.models, self.asked = list(layers), list(models), []

    def __call__(self, runs):
        for run in runs.values():
            run()
        self.asked.append(tuple(runs))
        whole = "sparse" in runs
        table = (self.models if whole else self.layers).pop(0)
        return {name: [table.get(name, 9.0)] * 3 for name in runs}


def model(zeros=0.9, width=32):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 4))
    return sparsify(net, zeros)


@torch.no_grad()
def sparsify(net, zeros=0.9):
    for parameter in net.parameters():
        if parameter.dim() > 1:
            parameter *= torch.rand_like(parameter) >= zeros
    return net


def chosen(report):
    return {layer.name: layer.chosen for layer in report.layers}


def reason(report, name):
    return next(layer.reason for layer in report.layers if layer.name == name)


def test_each_layer_gets_its_fastest_kernel():
    net = model().train()
    with torch.no_grad():
        for module in net[::2]:
            module.weight[0] = module.weight[:, :3] = 0.0
    timer = FakeTimer([{"dense": 2.0, "csr": 1.0}, {"dense": 2.0, "csr": 1.0, "narrow": 0.5}, {"dense": 1.0}])
    fast, report = use_sparse_kernels(net, X, kernels=["csr", "narrow"], timer=timer)
    assert chosen(report) == {"0": "csr", "2": "narrow", "4": "dense"}
    assert timer.asked == [("dense", "csr", "narrow")] * 3 + [("dense", "sparse")]
    assert [type(module) for module in fast[::2]] == [SparseLinear, SparseLinear, nn.Linear]
    assert report.swapped == ("0", "2")
    first, second, last = report.layers
    assert (first.gains["csr"], second.gains["narrow"]) == (2.0, 4.0)
    assert (first.dense_ms, first.kernels_ms["csr"]) == (2000.0, 1000.0)
    assert last.reason == "the best kernel, csr, is 0.11 times as fast as dense"
    assert (report.dense_ms, report.ms, report.gain) == (3000.0, 1000.0, 3.0)
    assert report.difference <= 1e-5
    with torch.no_grad():
        torch.testing.assert_close(fast(X), net.eval()(X), rtol=1e-4, atol=1e-5)


def test_the_model_given_stays_as_it_was():
    net = model().train()
    net[2].eval()
    before = copy.deepcopy(net.state_dict())
    fast, _ = use_sparse_kernels(net, X, kernels=["csr"], timer=FakeTimer([{"dense": 9.0, "csr": 1.0}] * 3))
    assert [m.training for m in net] == [True, True, False, True, True]
    assert all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert not any(m.training for m in fast.modules())
    assert not any(p.requires_grad for p in fast.parameters())
    own = {t.data_ptr() for t in net.parameters()}
    assert not own & {t.data_ptr() for t in (*fast.parameters(), *fast.buffers()) if t.numel()}


@pytest.mark.parametrize(("seconds", "expected"), [(1.0, "csr"), (1.01, "dense"), (2.0, "dense")])
def test_a_kernel_must_win_by_the_margin(seconds, expected):
    net = nn.Sequential(sparsify(nn.Linear(32, 32)))
    timer = FakeTimer([{"dense": 1.25, "csr": seconds}])
    _, report = use_sparse_kernels(net, X, kernels=["csr"], margin=0.25, timer=timer)
    assert chosen(report) == {"0": expected}


def test_paired_times_decide_not_their_medians():
    # The medians say that dense is as fast; the machine was slow in another round for each.
    def timer(runs):
        table = {"dense": [2.0, 20.0, 2.0], "csr": [1.0, 10.0, 10.0], "sparse": [1.0, 10.0, 1.0]}
        return {name: table[name] for name in runs}

    _, report = use_sparse_kernels(nn.Sequential(sparsify(nn.Linear(32, 32))), X, kernels=["csr"], timer=timer)
    assert report.layers[0].gains["csr"] == 2.0
    assert chosen(report) == {"0": "csr"}


def test_layers_are_given_back_until_the_whole_is_faster():
    tables = [{"dense": 1.3, "csr": 1.0}, {"dense": 9.0, "csr": 1.0}, {"dense": 1.2, "csr": 1.0}]
    wholes = [{"dense": 1.0, "sparse": 1.1}, {"dense": 1.0, "sparse": 0.99}, {"dense": 1.0, "sparse": 0.5}]
    fast, report = use_sparse_kernels(model(), X, kernels=["csr"], timer=FakeTimer(tables, wholes))
    assert chosen(report) == {"0": "dense", "2": "csr", "4": "dense"}
    assert reason(report, "4") == "given back: with 3 layers swapped, the model is 0.91 times as fast"
    assert reason(report, "0") == "given back: with 2 layers swapped, the model is 1.01 times as fast"
    assert (type(fast[0]), type(fast[2]), report.gain) == (nn.Linear, SparseLinear, 2.0)


def test_the_dense_model_comes_back_where_no_swap_pays():
    net = model()
    timer = FakeTimer([{"dense": 2.0, "csr": 1.0}] * 3, [{"dense": 1.0, "sparse": 1.0}] * 3)
    fast, report = use_sparse_kernels(net, X, kernels=["csr"], timer=timer)
    assert set(chosen(report).values()) == {"dense"}
    assert (report.gain, report.ms, report.difference) == (1.0, 1000.0, 0.0)
    assert report.bytes == report.dense_bytes
    assert torch.equal(fast(X), net(X))
    assert fast is not net
    none, report = use_sparse_kernels(net, X, kernels=["csr"], timer=FakeTimer([{"dense": 1.0}] * 3))
    assert (report.dense_ms, report.swapped) == (None, ())
    assert torch.equal(none(X), net(X))


class Block(nn.Module):
    """Of six layers, the outputs of two go through single entries to other layers and nowhere else."""

    def __init__(self):
        super().__init__()
        for name in ("first", "second", "third", "seen", "viewed", "last"):
            setattr(self, name, nn.Linear(32, 32))

    def forward(self, x):
        h = self.third(torch.relu(self.second(nn.functional.gelu(self.first(x)) * 2.0)) + 1.0)
        seen = self.seen(h.softmax(-1))
        return self.last(torch.relu(self.viewed(seen + x)).view(-1, 32)), seen


def test_outputs_stay_transposed_between_sparse_layers_only():
    net, x = sparsify(Block()), torch.randn(3, 4, 32)
    wholes = [{"dense": 9.0, "sparse": 2.0, "transposed": 1.0}]
    timer = FakeTimer([{"dense": 9.0, "csr": 1.0}] * 6, wholes)
    fast, report = use_sparse_kernels(net, x, kernels=["csr"], timer=timer)
    assert timer.asked[-1] == ("dense", "sparse", "transposed")
    assert report.transposed == ("first", "second")
    assert (report.gain, report.ms) == (9.0, 1000.0)
    assert "outputs stay transposed in memory after first, second" in str(report)
    assert fast.first(x).stride() == (4, 1, 12)
    assert fast.third(x).is_contiguous()
    for example in (x, x[:1, :1], x[:0]):
        for found, expected in zip(fast(example), net(example)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    program = torch.export.export(fast, (x,))
    torch.testing.assert_close(program.module()(x)[0], fast(x)[0])
    torch.testing.assert_close(torch.compile(fast, backend="aot_eager", fullgraph=True)(x)[0], fast(x)[0])


def test_outputs_are_put_in_order_where_that_costs_nothing():
    net = sparsify(Block())
    wholes = [{"dense": 9.0, "sparse": 2.0, "transposed": 1.99}]
    timer = FakeTimer([{"dense": 9.0, "csr": 1.0}] * 6, wholes)
    fast, report = use_sparse_kernels(net, X, kernels=["csr"], timer=timer)
    assert (report.transposed, report.ms) == ((), 2000.0)
    assert fast.first(X).is_contiguous()


def test_bytes_are_those_held_in_memory():
    net = model(0.9, 64)
    timer = FakeTimer([{"dense": 9.0, "csr": 1.0}] * 2 + [{"dense": 1.0}])
    _, report = use_sparse_kernels(net, X, kernels=["csr"], timer=timer)
    assert report.dense_bytes == 4 * sum(p.numel() for p in net.parameters())
    stored = [int(torch.count_nonzero(net[i].weight)) for i in (0, 2)]
    expected = [4 * (2 * stored[0] + 65 + 64), 4 * (2 * stored[1] + 33 + 32), 4 * (32 * 4 + 4)]
    assert [layer.bytes for layer in report.layers] == expected
    assert report.bytes == sum(expected)
    assert [layer.dense_bytes for layer in report.layers] == [4 * (m.weight.numel() + len(m.bias)) for m in net[::2]]


def test_the_report_says_it_in_words_and_in_plain_values():
    timer = FakeTimer([{"dense": 2.0, "csr": 1.0}, {"dense": 2.0, "csr": 1.0}, {"dense": 1.0, "csr": 1.5}])
    _, report = use_sparse_kernels(model(), X, kernels=["csr"], timer=timer)
    text = str(report)
    assert "2 of 3 layers swapped on cpu" in text
    assert "3e+03 ms dense, 1e+03 ms now (3.00 times faster)" in text
    assert "4 stays dense: the best kernel, csr, is 0.67 times as fast as dense" in text
    assert text.splitlines()[1].split() == [
        *("layer", "shape", "density", "dense", "ms", "csr", "ms", "chosen", "gain", "bytes")
    ]
    values = json.loads(json.dumps(report.to_dict()))
    assert values["swapped"] == ["0", "2"]
    assert values["layers"][0]["gains"] == {"csr": 2.0}


class Odd(nn.Module):
    """Layers that have to stay dense, each for a reason of its own."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(8, 32)
        self.tied = nn.Linear(32, 8, bias=False)
        self.tied.weight = self.embedding.weight
        self.never = nn.Linear(32, 32)
        self.keyword = nn.Linear(32, 32)
        self.hooked = nn.Linear(32, 32)
        self.hooked.register_forward_hook(lambda *_: None)
        self.parametrized = parametrize.register_parametrization(nn.Linear(32, 32), "weight", nn.Identity())
        self.low = nn.Linear(32, 32)
        self.full = nn.Linear(32, 32)
        self.wide = nn.Conv1d(32, 32, 3, padding=1)
        self.good = nn.Linear(32, 32)

    def forward(self, x):
        x = self.hooked(self.keyword(input=x + self.embedding.weight[0]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.low(x).float()
        x = self.good(self.full(self.parametrized(x)))
        return self.tied(self.wide(x[:, :, None])[:, :, 0])


def test_layers_that_cannot_be_swapped_are_listed_with_the_reason():
    net = sparsify(Odd())
    nn.init.normal_(net.full.weight)
    timer = FakeTimer([{"dense": 9.0, "csr": 1.0}])
    fast, report = use_sparse_kernels(net, X, kernels=["csr"], timer=timer)
    assert report.swapped == ("good",)
    expected = {
        "embedding": "no sparse kernel for Embedding",
        "tied": "its weight is embedding's as well",
        "never": "its forward is not called on the example inputs",
        "keyword": "it is called with other than one tensor",
        "hooked": "it has hooks",
        "parametrized.parametrizations.weight": "a parametrization: torch.nn.utils.parametrize.remove",
        "low": "it is called under autocast",
        "full": "csr: 0% of the entries are zero, fewer than 40%",
        "wide": "no sparse kernel for a convolution but of kernel size 1",
        "good": "",
    }
    assert {layer.name for layer in report.layers} == set(expected)
    for name, words in expected.items():
        assert reason(report, name).startswith(words), name
    assert fast.tied.weight is fast.embedding.weight


def test_paths_that_bypass_a_layer_are_seen_as_they_are():
    # In evaluation mode it hands its weights to one fused kernel, unless there are hooks on them.
    net = sparsify(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)).eval()
    x = torch.randn(2, 4, 32)
    fast, report = use_sparse_kernels(net, x, timer=FakeTimer([]))
    assert reason(report, "linear1") == "its forward is not called on the example inputs"
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x))


def test_a_layer_with_a_forward_of_its_own_keeps_it():
    net = sparsify(nn.Sequential(nn.Linear(32, 32)))
    net[0].forward = lambda x: 2 * x
    fast, report = use_sparse_kernels(net, X, timer=FakeTimer([]))
    assert reason(report, "0").startswith("it has hooks or a forward of its own")
    assert torch.equal(fast(X), 2 * X)


def test_layers_may_be_excluded_by_name():
    timer = FakeTimer([{"dense": 9.0, "csr": 1.0}])
    _, report = use_sparse_kernels(model(), X, kernels=["csr"], exclude=["[04]"], timer=timer)
    assert report.swapped == ("2",)
    assert reason(report, "0") == "excluded"


def test_pointwise_convolutions_and_layers_in_two_places_are_swapped():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 32, 1, stride=2)
            self.once = nn.Linear(32, 32)
            self.again = self.once

        def forward(self, x):
            x = torch.relu(self.convolution(x)).mean((2, 3))
            return self.again(torch.relu(self.once(x)[:2]))

    net, x = sparsify(Net(), 0.7), torch.randn(4, 3, 8, 8)
    timer = FakeTimer([{"dense": 9.0, "csr": 1.0}] * 2)
    fast, report = use_sparse_kernels(net, x, kernels=["csr"], timer=timer)
    assert report.swapped == ("convolution", "once")
    assert type(fast.convolution) is SparsePointwise
    assert fast.once is fast.again
    torch.testing.assert_close(fast(x), net(x))


def test_a_model_that_is_one_layer_is_swapped_whole():
    net = sparsify(nn.Linear(32, 32))
    fast, _ = use_sparse_kernels(net, X, kernels=["csr"], timer=FakeTimer([{"dense": 9.0, "csr": 1.0}]))
    assert type(fast) is SparseLinear
    torch.testing.assert_close(fast(X), net(X))


def test_a_kernel_that_computes_otherwise_is_refused(monkeypatch):
    net = nn.Sequential(sparsify(nn.Linear(32, 32)))
    wrong = registry.Kernel(lambda weight: CompressedMatrix(1.001 * weight), lambda _: None)
    monkeypatch.setattr(registry, "KERNELS", {**registry.KERNELS, "csr": wrong})
    for module in (trial, choose):
        monkeypatch.setattr(module, "KERNELS", registry.KERNELS)
    _, report = use_sparse_kernels(net, X, kernels=["csr"], timer=FakeTimer([]))
    assert "csr: its outputs differ by 0.00" in reason(report, "0")
    timer = FakeTimer([{"dense": 9.0, "csr": 1.0}])
    assert use_sparse_kernels(net, X, kernels=["csr"], tolerance=0.01, timer=timer)[1].swapped == ("0",)


def test_a_model_whose_outputs_drift_gets_its_layers_back():
    class Tells(nn.Module):
        """Its outputs depend on the kind of its layer."""

        def __init__(self):
            super().__init__()
            self.fc = sparsify(nn.Linear(32, 32))

        def forward(self, x):
            return self.fc(x) * (1.0 if type(self.fc) is nn.Linear else 1.001)

    timer = FakeTimer([{"dense": 9.0, "csr": 1.0}], [])
    _, report = use_sparse_kernels(Tells(), X, kernels=["csr"], timer=timer)
    assert reason(report, "fc").startswith("given back: with 1 layers swapped, the outputs differ by 0.001")


def test_outputs_that_are_no_numbers_are_no_match():
    nan = X.clone()
    nan[0, 0] = float("nan")
    net = nn.Sequential(sparsify(nn.Linear(32, 32)))
    _, report = use_sparse_kernels(net, nan, kernels=["csr"], timer=FakeTimer([]))
    assert "its outputs differ by inf" in reason(report, "0")


def test_models_that_read_their_weights_still_can():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(32, 32)

        def forward(self, x):
            return self.fc(x.to(self.fc.weight.dtype)) + self.fc.weight.sum()

    net = sparsify(Reads())
    fast, report = use_sparse_kernels(net, X, kernels=["csr"], timer=FakeTimer([{"dense": 9.0, "csr": 1.0}]))
    assert report.swapped == ("fc",)
    torch.testing.assert_close(fast(X), net(X))


def test_a_model_that_fails_once_swapped_is_told_with_the_remedy():
    class Insists(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(32, 32)

        def forward(self, x):
            assert isinstance(self.fc, nn.Linear), "no Linear"
            return self.fc(x)

    timer = FakeTimer([{"dense": 9.0, "csr": 1.0}])
    with pytest.raises(RuntimeError, match=r"layers swapped: fc; leave out with exclude=.*no Linear"):
        use_sparse_kernels(sparsify(Insists()), X, kernels=["csr"], timer=timer)


def test_inputs_come_as_the_model_takes_them():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(32, 32)

        def forward(self, a, b=None):
            return {"out": self.fc(a if b is None else a + b)}

    net = sparsify(Two())
    for given in (X, (X, X), {"a": X, "b": X}):
        timer = FakeTimer([{"dense": 9.0, "csr": 1.0}])
        assert use_sparse_kernels(net, given, kernels=["csr"], timer=timer)[1].swapped == ("fc",)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernels": ["coo"]}, "unknown kernels coo; possible: csr, bsr4"),
        ({"margin": -0.1}, "margin=-0.1"),
        ({"tolerance": -1.0}, "tolerance=-1.0"),
    ],
)
def test_what_is_not_possible_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        use_sparse_kernels(model(), X, **options)


def test_compiled_and_inference_mode():
    compiled = torch.compile(model(), backend="eager")
    with torch.inference_mode():
        fast, report = use_sparse_kernels(
            compiled, X, kernels=["csr"], timer=FakeTimer([{"dense": 9.0, "csr": 1.0}] * 3)
        )
    assert report.swapped == ("0", "2", "4")
    torch.testing.assert_close(copy.deepcopy(fast)(X), model()(X))


def test_transposed_linear_layers_of_transformers():
    Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
    net = sparsify(nn.Sequential(Conv1D(48, 32)))
    timer = FakeTimer([{"dense": 9.0, "csr": 1.0}])
    x = torch.randn(2, 5, 32)
    fast, _ = use_sparse_kernels(net, x, kernels=["csr"], timer=timer)
    assert (fast[0].in_features, fast[0].out_features) == (32, 48)
    torch.testing.assert_close(fast(x), net(x))


def test_a_sparse_run_goes_through_on_the_real_clock():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    setpoint.Sparsifier(net, optimizer, method="magnitude", target=0.95, steps=3)
    x = torch.randn(4, 512)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    fast, report = use_sparse_kernels(net, x, timer=Race(seconds=0.02))
    torch.testing.assert_close(fast(x), net(x))
    assert sum(layer.density * math.prod(layer.shape) for layer in report.layers) == round(0.05 * 522 * 512)
    assert report.layers[0].kernels_ms["csr"] > 0.0
    # What was measured decides, whatever it was.
    for layer in report.layers:
        if layer.chosen != "dense":
            assert layer.gains[layer.chosen] == max(layer.gains.values()) >= 1.1
            assert report.gain >= 1.02
