"""Batch norms: which one follows a layer, what that is good for, and statistics that start anew at the freeze."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import setpoint
from setpoint.norms import NormStatistics, NormWatch
from setpoint.recipes.models import build_model

from nets import build, train

STEPS = 20


class Net(nn.Module):
    """Two convolutions and two norms, put together by a function."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.n, self.m = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.steps = forward

    def forward(self, x):
        return self.steps(self, x)


def added_in_place(net, x):
    out = net.a(x)
    out += net.b(x)
    return net.n(out)


def late(net, x):
    first, second = net.a(x), net.a(x + 1)
    return net.n(second) + net.m(first)


def seen(model, shape=(2, 3, 5, 5), passes=2):
    """By the producers' names, the norms found behind them."""
    names = {module: name for name, module in model.named_modules()}
    producers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    watch = NormWatch(model, dict(enumerate(producers)))
    for _ in range(passes):
        model(torch.randn(shape))
    found = {names[producers[i]]: names[norm] for i, norm in watch.found().items()}
    watch.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return found


ARRANGEMENTS = {
    "two": (lambda net, x: net.n(net.a(x)) + net.m(net.b(x)), {"a": "n", "b": "m"}),
    "crossed": (lambda net, x: net.n(net.b(x)) + net.m(net.a(x)), {"b": "n", "a": "m"}),
    "same pair twice": (lambda net, x: net.n(net.a(x)) + net.n(net.a(x + 1)), {"a": "n"}),
    "relu": (lambda net, x: net.n(torch.relu(net.a(x))), {}),
    "relu in place": (lambda net, x: net.n(F.relu(net.a(x), inplace=True)), {}),
    "copy": (lambda net, x: net.n(net.a(x).clone()), {}),
    "sum": (lambda net, x: net.n(net.a(x) + net.b(x)), {}),
    "sum in place": (added_in_place, {}),
    "shared norm": (lambda net, x: net.n(net.a(x)) + net.n(net.b(x)), {}),
    "norm of more": (lambda net, x: net.n(net.a(x)) + net.n(x.repeat(1, 2, 1, 1)[:, :4]), {}),
    "two norms": (lambda net, x: (lambda out: net.n(out) + net.m(out))(net.a(x)), {}),
    "two norms, late": (late, {}),
}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_the_norm_that_takes_a_layers_output_and_nothing_else(arrangement):
    forward, want = ARRANGEMENTS[arrangement]
    assert seen(Net(forward)) == want


def test_norms_in_a_sequence_of_any_layers():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.ConvTranspose2d(4, 6, 2, groups=2)
    ).extend([nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 5), nn.BatchNorm1d(5)])
    assert seen(model) == {"0": "1", "3": "4", "6": "7"}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert seen(model) == {"0": "1", "3": "4", "6": "7"}


def test_norms_of_other_axes_without_scale_or_training_are_left():
    # A Linear over three axes has its outputs last, and the norm its channels in the middle.
    assert seen(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), shape=(2, 4, 3)) == {}
    assert seen(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False))) == {}
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[1].requires_grad_(False)
    assert seen(model) == {}
    model[1].requires_grad_(True)
    with torch.inference_mode():
        assert seen(model) == {}


def test_residual_networks():
    torch.manual_seed(0)
    model = build_model("resnet20", shape=(3, 32, 32), classes=10, width=0.25)
    found = seen(model, shape=(2, 3, 8, 8), passes=1)
    convolutions = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert found == {name: name.replace("conv", "bn") for name in convolutions}
    assert len(found) == 21
    # Where a norm stands before a layer, only those between two layers of a block follow one alone.
    model = build_model("wideresnet16-4", shape=(3, 32, 32), classes=10, width=0.25)
    found = seen(model, shape=(2, 3, 8, 8), passes=1)
    assert all(conv.replace("conv1", "bn2") == norm for conv, norm in found.items() if "conv1" in conv and "." in conv)


def run(begin=4, unit="filter", steps=STEPS, seed=0):
    model, opt, batch = build("convnet", seed=seed)
    schedule = setpoint.Schedule(begin=begin, end=12)
    sparsifier = setpoint.Sparsifier(model, opt, method="l0", target=0.5, unit=unit, steps=steps, schedule=schedule)
    return model, opt, batch, sparsifier


def test_filters_gates_are_on_the_norms_scale_and_shift():
    model, opt, batch, sparsifier = run()
    train(model, opt, batch, 6)
    assert sparsifier.state_dict()["norms"] == {"conv1.weight": "norm"}
    gated = [name for name, m in model.named_modules() if type(m).__name__.startswith("Gated")]
    assert gated == ["norm", "grouped", "up"]
    shut = torch.tensor([1.0, 0.0] * 4)
    sparsifier._gates.put(0, shut, shut)
    channels = []
    model.norm.register_forward_hook(lambda *call: channels.append(call[-1]))
    for mode in (model.train(), model.eval()):
        mode(batch(0)[0])
        assert bool((channels[-1][:, 1::2] == 0).all()), "not even the shift leaks through"
        assert bool((channels[-1][:, ::2] != 0).any())


def test_other_units_are_gated_themselves():
    model, opt, batch, sparsifier = run(unit="kernel")
    train(model, opt, batch, 6)
    assert sparsifier.state_dict()["norms"] == {}
    assert type(model.conv1).__name__ == "GatedConv2d"


def test_what_is_folded_into_a_norm_scales_its_channels_and_what_is_gone_is_silent():
    model, opt, batch, sparsifier = run()
    train(model, opt, batch, 8)
    inputs = batch(0)[0]
    sparsifier.freeze()
    kept = sparsifier.masks["conv1.weight"].flatten(1).any(1)
    assert 0 < int(kept.sum()) < 8
    assert bool((model.norm.weight[~kept] == 0).all())
    assert bool((model.norm.bias[~kept] == 0).all())
    assert bool((model.norm.weight[kept] != 0).all())
    assert bool((model.eval().norm(model.conv1(inputs))[:, ~kept] == 0).all())


def test_a_gate_before_a_norm_feels_next_to_nothing_and_one_behind_it_does():
    """The norm divides by what the gate multiplied with."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    inputs, targets = torch.randn(64, 3, 6, 6), torch.randint(4, (64,))
    z = torch.full((8,), 0.6, requires_grad=True)

    def slope(before, behind):
        x = model[1](model[0](inputs) * before[:, None, None]) * behind[:, None, None]
        return torch.autograd.grad(F.cross_entropy(model[2:](x), targets), z)[0].norm()

    open_gates = torch.ones(8)
    assert float(slope(z, open_gates)) < 0.01 * float(slope(open_gates, z))


def test_where_the_gates_are_is_a_part_of_the_runs_state():
    straight, opt, batch, _ = run()
    train(straight, opt, batch, STEPS)
    for cut in (1, 3, 4, 7, 12, 15):
        first, opt, batch, _ = run()
        train(first, opt, batch, cut)
        states = copy.deepcopy((first.state_dict(), opt.state_dict()))
        for order in (0, 1):
            model, opt, batch, sparsifier = run(seed=1)
            # An optimizer goes on with the very tensors that it is given.
            for part, state in ((model, states[0]), (opt, copy.deepcopy(states[1])))[:: 1 - 2 * order]:
                part.load_state_dict(state)
            assert sparsifier.step == cut
            train(model, opt, batch, STEPS - cut, start=cut)
            assert all(torch.equal(v, straight.state_dict()[k]) for k, v in model.state_dict().items()), cut


@pytest.mark.parametrize("back", [2, 6])
@pytest.mark.parametrize("ahead", [8, 16])
def test_a_run_that_is_taken_back_has_its_gates_where_they_belong(back, ahead):
    straight, opt, batch, _ = run()
    train(straight, opt, batch, STEPS)
    model, opt, batch, _ = run()
    train(model, opt, batch, back)
    states = copy.deepcopy((model.state_dict(), opt.state_dict()))
    train(model, opt, batch, ahead - back, start=back)
    opt.load_state_dict(states[1])
    model.load_state_dict(states[0])
    assert type(model.norm).__name__.startswith("Gated") == (back == 6)
    train(model, opt, batch, STEPS - back, start=back)
    assert all(torch.equal(v, straight.state_dict()[k]) for k, v in model.state_dict().items())


def averaging(momentum=0.25, batches=12):
    """(norm, statistics, batches, the mean and variance that the norm takes from each of them)."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3, momentum=momentum)
    inputs = [torch.randn(16, 3) * (1 + i) + i for i in range(batches)]
    return norm, NormStatistics(norm), inputs, [(x.mean(0), x.var(0)) for x in inputs]


@pytest.mark.parametrize("momentum", [0.1, 0.3, 1.0])
def test_statistics_start_at_the_first_batch_after_the_restart_then_move_on(momentum):
    norm, statistics, inputs, own = averaging(momentum)
    for x in inputs:
        norm(x + 100.0)
    old = norm.running_mean.clone(), norm.running_var.clone()
    statistics.restart()
    norm.eval()(inputs[0])
    assert torch.equal(norm.running_mean, old[0]), "evaluation counts for nothing"
    assert torch.equal(norm.running_var, old[1])
    norm.train()
    moving = None
    for x, new in zip(inputs, own):
        norm(x)
        statistics.stop()
        moving = new if moving is None else [(1 - momentum) * m + momentum * v for m, v in zip(moving, new)]
        assert torch.allclose(norm.running_mean, moving[0], atol=1e-4)
        assert torch.allclose(norm.running_var, moving[1], rtol=1e-4)
        assert norm.momentum == momentum


def test_norms_without_statistics_or_with_an_average_of_their_own_are_left():
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3, momentum=None))
    model[1](torch.randn(4, 3))
    NormStatistics(model).restart()
    assert int(model[1].num_batches_tracked) == 1
    assert [m.momentum for m in model] == [0.1, None]


@pytest.mark.parametrize("method", ["magnitude", "l0"])
def test_statistics_after_a_freeze_hold_nothing_from_before(method):
    model, opt, batch = build("convnet")
    schedule = setpoint.Schedule(begin=1, end=5)
    sparsifier = setpoint.Sparsifier(model, opt, method=method, target=0.5, unit="filter", steps=30, schedule=schedule)
    train(model, opt, batch, 5)
    assert sparsifier.phase == "frozen"
    with torch.no_grad():
        model.norm.running_mean.fill_(1e6)
    means = []
    model.norm.register_forward_pre_hook(lambda _, args: means.append(args[0].detach().mean((0, 2, 3))))
    want = None
    for step in range(9):
        train(model, opt, batch, 1, start=5 + step)
        want = means[-1] if want is None else 0.9 * want + 0.1 * means[-1]
        assert torch.allclose(model.norm.running_mean, want, atol=1e-5)
        assert model.norm.momentum == 0.1


def test_a_run_resumed_while_the_statistics_start_anew_ends_in_the_same_bits():
    def fresh():
        model, opt, batch = build("convnet")
        schedule = setpoint.Schedule(begin=1, end=5)
        return (
            model,
            opt,
            batch,
            setpoint.Sparsifier(model, opt, method="magnitude", target=0.5, steps=30, schedule=schedule),
        )

    straight, opt, batch, _ = fresh()
    train(straight, opt, batch, 20)
    for cut in (5, 6, 13, 14, 15):
        first, opt, batch, _ = fresh()
        train(first, opt, batch, cut)
        states = copy.deepcopy((first.state_dict(), opt.state_dict()))
        model, opt, batch, _ = fresh()
        model.load_state_dict(states[0])
        opt.load_state_dict(states[1])
        train(model, opt, batch, 20 - cut, start=cut)
        assert all(torch.equal(v, straight.state_dict()[k]) for k, v in model.state_dict().items()), cut


def test_the_norms_own_average_comes_back_when_the_run_is_removed_or_taken_back():
    model, opt, batch, sparsifier = run()
    train(model, opt, batch, 2)
    early = copy.deepcopy(opt.state_dict())
    train(model, opt, batch, sparsifier.timeline.end - 2, start=2)
    assert model.norm.momentum == 1.0
    opt.load_state_dict(early)
    assert model.norm.momentum == 0.1
    train(model, opt, batch, sparsifier.timeline.end - 2, start=2)
    assert model.norm.momentum == 1.0
    sparsifier.remove()
    assert model.norm.momentum == 0.1


def test_a_run_resumed_frozen_looks_for_no_norms():
    model, opt, batch, _ = run(begin=0)
    train(model, opt, batch, 15)
    again, other, _, _ = run(begin=0)
    again.load_state_dict(model.state_dict())
    other.load_state_dict(opt.state_dict())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in again.modules())


def test_a_copy_made_while_the_statistics_start_anew_has_the_norms_own_average(tmp_path):
    model, opt, batch, sparsifier = run()
    train(model, opt, batch, sparsifier.timeline.end)
    assert model.norm.momentum == 1.0
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    setpoint.save(model, tmp_path / "model.safetensors")
    here = setpoint.load_model(tmp_path / "model.safetensors", trusted=["nets"])
    for copied in (copy.deepcopy(model), loaded, here):
        assert type(copied.norm.momentum) is float
        assert copied.norm.momentum == 0.1
    assert b"setpoint" not in (tmp_path / "model.pt").read_bytes()
    train(model, opt, batch, 1, start=sparsifier.timeline.end)
    assert type(model.norm.momentum) is float
    assert model.norm.momentum == 0.1


def test_an_average_that_is_changed_meanwhile_is_the_norms_own():
    model, opt, batch, sparsifier = run()
    train(model, opt, batch, sparsifier.timeline.end - 1)
    model.norm.momentum = 0.3
    train(model, opt, batch, 3, start=sparsifier.timeline.end - 1)
    assert model.norm.momentum == 0.3
    model.norm.momentum = 0.2
    train(model, opt, batch, 1, start=sparsifier.timeline.end + 2)
    assert model.norm.momentum == 0.2
    norm, statistics, *_ = averaging(0.25)
    statistics.restart()
    statistics.restart()
    statistics.stop()
    assert norm.momentum == 0.25


def test_statistics_start_anew_in_a_compiled_model():
    torch._dynamo.reset()
    norm, statistics, inputs, own = averaging(0.25)
    compiled = torch.compile(nn.Sequential(norm), backend="eager", fullgraph=True)
    compiled(inputs[0])
    statistics.restart()
    compiled(inputs[5])
    statistics.stop()
    assert torch.allclose(norm.running_mean, own[5][0], atol=1e-5)
    compiled(inputs[6])
    assert torch.allclose(norm.running_mean, 0.75 * own[5][0] + 0.25 * own[6][0], atol=1e-5)
