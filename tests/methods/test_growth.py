"""What grown weights begin with, and what is left of those that went."""

import math

import pytest
import torch
from moving_runs import MOVING, backward, schedule, sparsify
from torch import nn

import setpoint
from setpoint.methods import RigL, SparseEvolutionaryTraining
from setpoint.recipes.models import build_model
from test_contract import assert_exact

from nets import build, train


@pytest.mark.parametrize("method", MOVING)
def test_what_grows_begins_at_zero_whatever_it_was_before(method):
    """Dropped and grown again at once, a weight would otherwise keep its old value and momentum."""
    model, opt, batch, sparsifier = sparsify(MOVING[method](drop_fraction=1.0, decay="constant"), target=0.5)
    lr = opt.param_groups[0]["lr"]
    train(model, opt, batch, 3)
    before = sparsifier.masks
    train(model, opt, batch, 1, start=3)
    again = 0
    for name, mask in sparsifier.masks.items():
        # All units were dropped, so that all are new.
        weight = model.get_parameter(name)
        assert not bool(weight.any())
        assert not bool(opt.state[weight]["momentum_buffer"].any())
        again += int((mask & before[name]).sum())
    assert again > 20
    backward(model, batch, 4)
    gradients = {n: model.get_parameter(n).grad.clone() for n in before}
    opt.step()
    for name, mask in sparsifier.masks.items():
        # One step of SGD from zero, without any momentum.
        weight = model.get_parameter(name)
        assert torch.equal(weight[mask], -lr * gradients[name][mask])
        assert torch.equal(opt.state[weight]["momentum_buffer"][mask], gradients[name][mask])


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
@pytest.mark.parametrize(
    "factory",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
        lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
        lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
        lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-2, foreach=True),
        lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True, momentum=0.5),
    ],
)
@pytest.mark.parametrize("masking", [False, True])
def test_what_is_gone_is_zero_and_has_no_optimizer_state_at_any_step(method, factory, masking):
    model, _, batch = build("convnet")
    opt = factory(model.parameters())
    train(model, opt, batch, 2)  # the optimizer has moments before there is a support
    sparsifier = setpoint.Sparsifier(model, opt, method=method, target=0.8, steps=20, schedule=schedule(15, 2))
    for step in range(20):
        assert_exact(sparsifier)
        for name, mask in sparsifier.masks.items():
            weight = model.get_parameter(name)
            assert not bool(torch.signbit(weight[~mask]).any())
            states = [s for s in opt.state[weight].values() if s.shape == weight.shape]
            assert states
            assert all(bool((s[~mask] == 0).all()) for s in states)
            assert all(bool((s[mask] != 0).any()) for s in states)
        if masking:
            backward(model, batch, step)
            sparsifier.mask_gradients()
            opt.step()
        else:
            train(model, opt, batch, 1, start=step)


def test_a_channel_that_grows_changes_nothing_and_learns():
    """With zeros on both sides it would never get a gradient."""
    torch.manual_seed(0)
    model = build_model("lenet5", shape=(1, 28, 28), classes=4, width=0.5)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, y = torch.randn(8, 1, 28, 28), torch.randint(4, (8,))
    sparsifier = setpoint.Sparsifier(
        model,
        opt,
        method=RigL(drop_fraction=0.5, decay="constant", regrow=False),
        target=setpoint.Target(units=0.5),
        unit="channel",
        steps=10,
        schedule=schedule(4, 3),
        example_inputs=x,
    )

    def step():
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()

    for _ in range(3):
        step()
    before = sparsifier.kept_units()
    layers = {layer.name: layer for layer in sparsifier._layers}
    for group in opt.param_groups:
        group["lr"] = 0.0
    step()
    grown = {n: [i for i in k.tolist() if i not in before[n].tolist()] for n, k in sparsifier.kept_units().items()}
    assert sum(len(g) for g in grown.values()) > 0
    outputs = model(x)
    for name, units in grown.items():
        for part in layers[name].parts:
            entries = part.parameter.detach().movedim(part.partition.axis, 0)
            index = part.partition.index[units].flatten()
            assert part.reads or bool((entries[index] != 0).any())
            entries[index] = 0.0  # as if none had grown
    assert torch.allclose(model(x), outputs, atol=1e-6)


def test_a_channel_that_grew_gets_a_gradient():
    torch.manual_seed(0)
    model = build_model("lenet5", shape=(1, 28, 28), classes=4, width=0.5)
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    x, y = torch.randn(8, 1, 28, 28), torch.randint(4, (8,))
    sparsifier = setpoint.Sparsifier(
        model,
        opt,
        method=SparseEvolutionaryTraining(drop_fraction=0.5),
        target=setpoint.Target(units=0.5),
        unit="channel",
        steps=10,
        schedule=schedule(8, 1),
        example_inputs=x,
    )
    for _ in range(10):
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
    for name, units in sparsifier.kept_units().items():
        for part in next(la for la in sparsifier._layers if la.name == name).parts:
            if part.parameter.ndim > 1:
                entries = part.parameter.detach().movedim(part.partition.axis, 0)[part.partition.index[units]]
                assert bool((entries != 0).flatten(1).any(1).all()), part.name


@pytest.mark.parametrize("kind", ["adamw", "fused", "amsgrad", "rmsprop"])
@pytest.mark.parametrize("second_moment", ["mean", "zero"])
def test_the_first_step_of_a_new_weight_late_in_training(kind, second_moment):
    """Adam's count of steps is one for a whole parameter: moments of zero are not corrected late in the run."""
    torch.manual_seed(0)
    model, _, batch = build("mlp")
    lr = 1e-3
    if kind == "rmsprop":
        opt = torch.optim.RMSprop(model.parameters(), lr=lr)
    else:
        options = {"fused": {"fused": True}, "amsgrad": {"amsgrad": True}}.get(kind, {})
        opt = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, **options)
    method = RigL(regrow=False, second_moment=second_moment)
    sparsifier = setpoint.Sparsifier(model, opt, method=method, target=0.5, steps=100, schedule=schedule(90, 60))
    train(model, opt, batch, 60)
    if kind != "rmsprop":
        for state in opt.state.values():
            state["step"].fill_(100_000.0)
    before = sparsifier.masks
    train(model, opt, batch, 2, start=60)
    steps = []
    for name, mask in sparsifier.masks.items():
        moved = model.get_parameter(name).detach()[mask & ~before[name]].abs()
        steps.append(moved[moved > 0] / lr)
    steps = torch.cat(steps)
    assert len(steps) > 20
    if second_moment == "zero":
        # (1 - 0.9) / sqrt(1 - 0.999), and for RMSprop 1 / sqrt(1 - 0.99), whatever the gradient.
        expected = 10.0 if kind == "rmsprop" else 0.1 / math.sqrt(0.001)
        assert torch.allclose(steps, torch.full_like(steps, expected), rtol=0.02)
    else:
        # In proportion to the gradient, of which these are the largest.
        assert float(steps.max()) < (5.0 if kind == "rmsprop" else 1.6)
        assert float(steps.max()) > 2.0 * float(steps.min())


def test_new_weights_get_the_mean_second_moment_of_the_old_ones():
    method = RigL(regrow=False, second_moment="mean")
    model, opt, batch, sparsifier = sparsify(method, optimizer="adamw", end=40, interval=20)
    train(model, opt, batch, 20)
    before = sparsifier.masks
    backward(model, batch, 20)
    magnitudes = {n: model.get_parameter(n).detach().abs() for n in before}
    seconds = {n: opt.state[model.get_parameter(n)]["exp_avg_sq"].clone() for n in before}
    opt.step()
    for name, mask in sparsifier.masks.items():
        survivors, grown = mask & before[name], mask & ~before[name]
        assert bool(magnitudes[name][survivors].min() > 0)
        seen = seconds[name][survivors]
        moment = opt.state[model.get_parameter(name)]["exp_avg_sq"][grown].double()
        assert torch.allclose(moment, 0.999 * seen[seen > 0].double().mean(), rtol=1e-5)


def test_random_values_on_request():
    method = SparseEvolutionaryTraining(regrow=False, begin="random", replace_step=True)
    model, opt, batch, sparsifier = sparsify(method, target=0.5)
    train(model, opt, batch, 3)
    before = sparsifier.masks
    train(model, opt, batch, 1, start=3)
    for name, mask in sparsifier.masks.items():
        weight = model.get_parameter(name).detach()
        grown, survivors = weight[mask & ~before[name]], weight[mask & before[name]]
        assert bool((grown != 0).all())
        assert 0.5 < float(grown.std() / survivors.std()) < 2.0


@pytest.mark.parametrize("method", MOVING)
def test_the_step_of_an_update_can_be_left_out(method):
    model, opt, batch, sparsifier = sparsify(MOVING[method](replace_step=True), optimizer="adamw", target=0.5)
    train(model, opt, batch, 3)
    before = {n: (m, model.get_parameter(n).detach().clone()) for n, m in sparsifier.masks.items()}
    bias = model[0].bias.detach().clone()
    train(model, opt, batch, 1, start=3)
    moved = 0
    for name, mask in sparsifier.masks.items():
        old_mask, old = before[name]
        weight = model.get_parameter(name).detach()
        stays = mask & (weight != 0)
        assert torch.equal(weight[stays], old[stays])
        moved += int((old_mask & ~mask).sum())
    assert moved > 20
    assert not torch.equal(model[0].bias, bias)
    assert sparsifier.step == 4
