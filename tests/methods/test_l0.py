"""Gates under a constraint: what they are charged, that the actual count follows the budget, and exact runs."""

import copy
import math

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F

import setpoint
from setpoint.functional import hard_concrete, hard_concrete_open
from setpoint.methods import ConstrainedL0

from nets import build, mlp, train

STEPS = 20
AT_ONCE = setpoint.Schedule(begin=0, end=STEPS)


def sparsify(net="mlp", optimizer="sgd", seed=0, **options):
    """(model, optimizer, batch, sparsifier)."""
    model, opt, batch = build(net, optimizer, seed)
    method = options.pop("method", "l0")
    sparsifier = setpoint.Sparsifier(model, opt, **({"target": 0.5, "steps": STEPS, "method": method} | options))
    return model, opt, batch, sparsifier


def memories(sparsifier):
    return sparsifier.state_dict()["memories"]


def alphas(sparsifier):
    """Of the one budget, by layer: views of what the method remembers."""
    (memory,) = memories(sparsifier)
    counts = [p.counts for p in sparsifier._all_units()[0].partitions]
    parts = memory["log_alpha"].split([math.prod(c) for c in counts])
    return [part.view(c) for part, c in zip(parts, counts)]


def same(first, second):
    return all(torch.equal(v, second[k]) for k, v in first.items()) and first.keys() == second.keys()


def count(report):
    return sum(layer.units_kept for layer in report.layers), sum(layer.units for layer in report.layers)


def gated(model):
    return any(type(m).__name__.startswith("Gated") for m in model.modules())


def test_gates_open_with_the_probability_asked_for():
    for opening in (0.6, 0.95):
        *_, sparsifier = sparsify(method=ConstrainedL0(opening=opening), schedule=AT_ONCE)
        alpha = memories(sparsifier)[0]["log_alpha"]
        assert torch.allclose(hard_concrete_open(alpha), torch.tensor(opening), atol=1e-6)


def test_gates_that_are_shut_cost_nothing_whatever_their_bound():
    """The expected cost of a gate at its lower bound is above zero; that of the network's zeros is not."""
    model, opt, batch, sparsifier = sparsify(schedule=AT_ONCE, target=0.98)
    (memory,) = memories(sparsifier)
    memory["log_alpha"].fill_(-1e9)
    train(model, opt, batch, 1)
    bound = memory["log_alpha"].min()
    assert float(bound) > -10
    assert float(hard_concrete_open(bound)) > 1e-4
    assert float(memory["violation"]) == -1.0, "nothing is open: as far below the budget as is counted"
    assert float(memory["multiplier"]) == 0.0
    assert count(sparsifier.report())[0] == 0
    alpha, budget = memory["log_alpha"], sparsifier._budgets[0]
    # With as many open as the target lets stay, the violation is none.
    alpha[: int(budget.kept)] = 2.0
    units = sparsifier._all_units(last=True)[0]
    still = [(torch.ones(p.counts), torch.zeros(p.counts)) for p in units.partitions]
    sparsifier.method.gates(units, still)
    assert float(memory["violation"]) == pytest.approx(math.log(int(budget.kept) / budget.room(1.0)), abs=1e-6)


def test_gates_of_bigger_units_are_charged_more():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 10), nn.Linear(10, 10))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    method = ConstrainedL0(lr=0.1, opening=0.95, integral=20.0, proportional=0.0)
    for cost, falls in [("params", [True, False]), ("units", [False, False])]:
        target = setpoint.Target(sparsity=0.7, cost=cost)
        sparsifier = setpoint.Sparsifier(
            model, opt, method=method, target=target, unit="row", steps=STEPS, schedule=AT_ONCE
        )
        (units,) = sparsifier._all_units(last=True)
        before = [a.clone() for a in alphas(sparsifier)]
        # The loss pulls at all of them alike, to stay open.
        method.gates(units, [(torch.full_like(a, 0.5), torch.full_like(a, -0.01)) for a in before])
        moved = [a - b for a, b in zip(alphas(sparsifier), before)]
        assert [bool((m < 0).all()) for m in moved] == falls
        assert [bool((m > 0).all()) for m in moved] == [not f for f in falls]
        sparsifier.remove()


def test_the_cut_goes_by_the_gates_whatever_the_cost_which_they_have_felt_already():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 10), nn.Linear(10, 10))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    target = setpoint.Target(sparsity=0.2)
    sparsifier = setpoint.Sparsifier(
        model, opt, method="l0", target=target, unit="row", steps=STEPS, schedule=AT_ONCE, floor=0
    )
    for a, opened in zip(alphas(sparsifier), (1.0, 0.5)):
        a.fill_(opened)
    sparsifier.freeze()
    assert [float(m.float().mean()) for m in sparsifier.masks.values()] == [1.0, 0.0]


def test_each_budget_has_a_multiplier_of_its_own():
    model, opt, batch, sparsifier = sparsify(
        scope={"0.*": 0.8, "2.*": 0.1}, target=None, schedule=setpoint.Schedule("linear", begin=0, end=60), steps=60
    )
    assert len(memories(sparsifier)) == 2
    train(model, opt, batch, 40)
    first, second = (float(m["multiplier"]) for m in memories(sparsifier))
    assert first > second
    *_, sparsifier = sparsify(scope="uniform", schedule=AT_ONCE)
    assert len({id(m["multiplier"]) for m in memories(sparsifier)}) == 3
    *_, sparsifier = sparsify(scope="global", schedule=AT_ONCE)
    assert len(memories(sparsifier)) == 1


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


@pytest.mark.parametrize(
    ("unit", "sparsity", "scope", "cost"),
    [("weight", 0.8, "global", "params"), ("row", 0.5, "global", "units"), ("weight", 0.7, "uniform", "params")],
)
def test_the_actual_count_follows_the_schedule_and_is_exact_after_the_cut(digits, unit, sparsity, scope, cost):
    inputs, targets = digits
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    steps = 600
    sparsifier = setpoint.Sparsifier(
        model,
        opt,
        method="l0",
        target=setpoint.Target(sparsity=sparsity, cost=cost),
        unit=unit,
        scope=scope,
        steps=steps,
        schedule=setpoint.Schedule(begin=0.1, end=0.8),
    )
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        index = torch.randint(len(inputs), (64,), generator=generator)
        opt.zero_grad()
        F.cross_entropy(model(inputs[index]), targets[index]).backward()
        opt.step()
        if step == int(0.8 * steps) - 2:
            before = sparsifier.report()
            assert sparsifier.phase == "sparsify"
    kept, units = count(before)
    assert 1 - kept / units == pytest.approx(sparsity, abs=0.05)
    row = sparsifier.history[-1]
    if unit == "weight":
        assert row["zeros"] == pytest.approx(1 - kept / units, abs=0.01)
    assert {"step", "asked", "zeros", "multiplier", "violation"} <= row.keys()
    assert all(math.isfinite(v) for r in sparsifier.history for v in r.values())
    assert sparsifier.report().exact
    kept = sparsifier.masks
    assert all(torch.equal(model.get_parameter(n) != 0, m) for n, m in kept.items())
    assert float((model(inputs).argmax(1) == targets).float().mean()) > 0.9


def test_the_features_that_matter_stay_open():
    """Sparse regression: what the loss feels of a gate must open it, and what it does not feel shuts."""
    generator = torch.Generator().manual_seed(0)
    true = torch.zeros(60)
    true[::6] = torch.linspace(1.0, 2.0, 10)
    torch.manual_seed(0)
    model = nn.Linear(60, 1, bias=False)
    opt = torch.optim.Adam(model.parameters(), lr=0.02)
    # Magnitude must not decide: all weights begin alike in size, the useful ones smallest.
    with torch.no_grad():
        model.weight.copy_(torch.where(true != 0, 0.1, 1.0))
    target, schedule = setpoint.Target(units=10), setpoint.Schedule(begin=0.0, end=0.8)
    sparsifier = setpoint.Sparsifier(model, opt, method="l0", target=target, steps=500, schedule=schedule)
    for _ in range(500):
        inputs = torch.randn(64, 60, generator=generator)
        opt.zero_grad()
        F.mse_loss(model(inputs)[:, 0], inputs @ true).backward()
        opt.step()
    assert torch.equal(sparsifier.masks["weight"][0], true != 0)
    assert torch.allclose(model.weight.detach()[0], true, atol=0.1)


def test_among_gates_alike_the_larger_magnitudes_stay():
    model, _, _, sparsifier = sparsify(schedule=AT_ONCE)
    want = torch.cat([model.state_dict()[n].abs().flatten() for n in sparsifier.masks])
    sparsifier.freeze()
    kept = torch.cat([m.flatten() for m in sparsifier.masks.values()])
    assert float(want[kept].min()) >= float(want[~kept].max())


def test_folding_multiplies_the_medians_in_and_gives_no_unit_that_is_kept_a_zero():
    model, _, _, sparsifier = sparsify(schedule=AT_ONCE, unit="row", floor=2)
    before = {n: model.state_dict()[n].clone() for n in sparsifier.masks}
    of_layers = alphas(sparsifier)
    for a in of_layers:
        a.copy_(torch.linspace(-6, 4, a.numel()).reshape(a.shape))
    of_layers[1].fill_(-6.0)  # all shut; the floor keeps two of them all the same
    sparsifier.freeze()
    for (name, mask), a in zip(sparsifier.masks.items(), of_layers):
        after, kept = model.get_parameter(name).detach(), mask[:, 0]
        assert bool((after[mask] != 0).all())
        median = hard_concrete(a).flatten()
        factors = torch.where(median > 0, median, hard_concrete_open(a).flatten())
        assert torch.allclose(after[kept], before[name][kept] * factors[kept, None])
        assert bool((after[~kept] == 0).all())
    assert int(sparsifier.masks["2.weight"][:, 0].sum()) == 2
    assert sparsifier.report().exact


def test_the_same_network_right_before_and_after_the_cut_where_the_count_is_met():
    model, _, batch, sparsifier = sparsify(schedule=AT_ONCE, target=setpoint.Target(units=21), unit="row")
    for a in alphas(sparsifier):
        a.fill_(-3.0).flatten()[: a.numel() // 2] = 1.0
    sparsifier._open(None)
    before = model.eval()(batch(0)[0])
    assert count(sparsifier.report())[0] == 21
    sparsifier.freeze()
    assert torch.allclose(model(batch(0)[0]), before, atol=1e-6)


@pytest.mark.parametrize("unit", ["weight", "row", "2:4"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resumed_run_ends_in_the_same_bits(tmp_path, optimizer, unit):
    def fresh(seed=0):
        return sparsify(
            optimizer=optimizer, unit=unit, target=0.4, seed=seed, schedule=setpoint.Schedule(begin=3, end=12)
        )

    straight, opt, batch, whole = fresh()
    train(straight, opt, batch, STEPS)
    for cut in (1, 2, 3, 4, 8, 11, 12, 17):
        first, opt, batch, _ = fresh()
        train(first, opt, batch, cut)
        torch.save({"model": first.state_dict(), "optimizer": opt.state_dict()}, tmp_path / "checkpoint.pt")
        model, opt, batch, sparsifier = fresh(seed=1)
        saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["optimizer"])
        assert sparsifier.step == cut
        assert gated(model) == (3 <= cut < 12)
        train(model, opt, batch, STEPS - cut, start=cut)
        assert same(model.state_dict(), straight.state_dict()), cut
        assert sparsifier.history == whole.history


def test_torchs_own_random_numbers_are_not_touched():
    model, opt, batch, _ = sparsify()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(model, opt, batch, STEPS)
    assert torch.equal(torch.get_rng_state(), before)


def test_gates_depend_on_seed_step_and_layer_alone():
    def samples(seed, other=0):
        torch.manual_seed(other)
        *_, sparsifier = sparsify(method=ConstrainedL0(seed=seed), schedule=AT_ONCE, seed=other)
        return [sparsifier._gates.samples(i) for i in range(3)]

    assert all(torch.equal(a, b) for a, b in zip(samples(3), samples(3, other=1)))
    assert not any(torch.equal(a, b) for a, b in zip(samples(3), samples(4)))
    model, opt, batch, sparsifier = sparsify(method=ConstrainedL0(lr=1e-9, seed=3), schedule=AT_ONCE)
    first = sparsifier._gates.samples(0).clone()
    assert not torch.equal(first[: 16 * 8], sparsifier._gates.samples(1)[: 16 * 8])
    train(model, opt, batch, 1)
    assert not torch.equal(first, sparsifier._gates.samples(0)), "a new sample at every step"


def test_samples_are_open_as_often_as_they_should_be():
    model, opt, batch, sparsifier = sparsify(method=ConstrainedL0(lr=1e-9, opening=0.7), schedule=AT_ONCE)
    found = []
    for step in range(15):
        found.append(torch.cat([sparsifier._gates.samples(i) > 0 for i in range(3)]))
        train(model, opt, batch, 1, start=step)
    found = torch.stack(found).float()
    assert float(found.mean()) == pytest.approx(0.7, abs=0.015)
    assert float((found[1:] * found[:-1]).mean()) == pytest.approx(0.49, abs=0.02), "steps are independent"


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_is_skipped_leaves_the_gates_as_they_were(fused):
    model, _, batch = build("mlp")
    opt = torch.optim.SGD(model.parameters(), lr=0.05, fused=fused)
    sparsifier = setpoint.Sparsifier(model, opt, method="l0", target=0.5, steps=STEPS, schedule=AT_ONCE)
    train(model, opt, batch, 5)
    before = copy.deepcopy(memories(sparsifier)), [sparsifier._gates.samples(i).clone() for i in range(3)]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    inputs, targets = batch(5)
    opt.zero_grad()
    scaler.scale(F.cross_entropy(model(inputs), targets)).backward()
    opt.param_groups[0]["params"][0].grad[0, 0] = torch.inf
    scaler.step(opt)
    scaler.update()
    if not fused:
        opt.zero_grad()
        (model(inputs) * float("nan")).sum().backward()
        with pytest.warns(UserWarning, match="NaN or infinite"):
            opt.step()
    assert sparsifier.step == 5
    for old, new in zip(before[0], memories(sparsifier)):
        assert old["steps"] == new["steps"] == 5
        assert all(torch.equal(a, b) for key in ("log_alpha", "first", "second") for a, b in zip(old[key], new[key]))
        assert all(torch.equal(old[key], new[key]) for key in ("multiplier", "violation", "size"))
    assert all(torch.equal(z, sparsifier._gates.samples(i)) for i, z in enumerate(before[1]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.0}, "lr=0.0 must be a number above 0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"opening": 0.5}, "opening=0.5 must lie between 0.5 and 1"),
        ({"opening": 1.0}, "opening=1.0"),
        ({"opening": math.nan}, "opening=nan"),
        ({"proportional": -1.0}, "proportional=-1.0"),
        ({"integral": 0.0}, "integral=0.0"),
        ({"integral": math.inf}, "integral=inf"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ConstrainedL0(**options)


def test_a_hoyer_target_is_refused():
    with pytest.raises(ValueError, match="'l0' cannot meet a target hoyer"):
        sparsify(target=setpoint.Target(hoyer=0.5))


@pytest.mark.parametrize("unit", ["weight", "filter", (4, 4), "2:4"])
@pytest.mark.parametrize(
    "schedule",
    [
        setpoint.Schedule("one-shot", end=12),
        setpoint.Schedule("one-shot", begin=0, end=STEPS),
        setpoint.Schedule(begin=0, end=12),
        setpoint.Schedule(begin=0, end=1),
        setpoint.Schedule("linear", begin=11, end=12, interval=3),
    ],
    ids=["one-shot", "one-shot-throughout", "from-the-start", "one-step", "late"],
)
def test_any_schedule_ends_exactly(schedule, unit):
    model, opt, batch, sparsifier = sparsify("convnet", unit=unit, schedule=schedule, target=0.4)
    train(model, opt, batch, STEPS)
    assert sparsifier.report().exact
    assert not gated(model)
    assert all(torch.equal(model.get_parameter(n) != 0, m) for n, m in sparsifier.masks.items())


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 8, 12])
@pytest.mark.parametrize(("net", "unit"), [("mlp", "weight"), ("convnet", "filter")])
def test_the_phase_may_be_ended_early(taken, net, unit):
    model, opt, batch, sparsifier = sparsify(net, unit=unit, schedule=setpoint.Schedule(begin=3, end=15))
    train(model, opt, batch, taken)
    sparsifier.freeze()
    assert sparsifier.phase == "frozen"
    assert sparsifier.report().exact
    assert not gated(model)
    masks = sparsifier.masks
    train(model, opt, batch, STEPS, start=taken)
    assert sparsifier.report().exact
    assert not gated(model)
    assert all(torch.equal(model.get_parameter(n) != 0, m) for n, m in masks.items())


@pytest.mark.parametrize("taken", [1, 7])
@pytest.mark.parametrize("net", ["mlp", "convnet"])
def test_removed_in_the_middle_it_leaves_a_plain_model(taken, net):
    model, opt, batch, sparsifier = sparsify(net, unit="row", schedule=setpoint.Schedule(begin=3, end=15))
    train(model, opt, batch, taken)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    sparsifier.remove()
    plain, _, _ = build(net)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert same(model.state_dict(), weights)
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._state_dict_hooks for m in model.modules())
    plain.load_state_dict(weights)
    other = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    for trained, by in ((model, opt), (plain, other)):
        train(trained, by, batch, 3)
    assert same(model.state_dict(), plain.state_dict())
    again = setpoint.Sparsifier(model, opt, method="l0", target=0.5, unit="row", steps=STEPS)
    train(model, opt, batch, STEPS)
    assert again.report().exact


def test_what_is_open_is_what_is_reported_in_the_sparsify_phase():
    model, opt, batch, sparsifier = sparsify(unit="row", schedule=AT_ONCE)
    train(model, opt, batch, 3)
    a = alphas(sparsifier)[0]
    a.fill_(2.0).flatten()[:5] = -3.0
    sparsifier._open(None)
    assert sparsifier.report().layers[0].units_kept == a.numel() - 5
    hidden = model.eval()[0](batch(0)[0])
    assert bool((hidden[:, :5] == model[0].bias[:5]).all())
    assert bool(mlp()[0](batch(0)[0]).shape == hidden.shape)


def learned(scale=lambda step: 1.0, dtype=torch.float32, optimizer=None, steps=80, spoil=None, **options):
    """What the gates of a network that stands still have learned in the end, under a loss of some scale."""
    torch.manual_seed(0)
    model = mlp().to(dtype)
    opt = optimizer(model.parameters()) if optimizer else torch.optim.SGD(model.parameters(), lr=0.0)
    schedule = setpoint.Schedule(begin=0, end=steps)
    sparsifier = setpoint.Sparsifier(model, opt, method="l0", target=0.5, steps=steps, schedule=schedule, **options)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps - 1):
        inputs = torch.randn(64, 20, generator=generator)
        opt.zero_grad()
        loss = F.cross_entropy(model(inputs.to(dtype)), (inputs[:, :8] + inputs[:, 8:16]).argmax(1))
        (loss * scale(step)).backward()
        if spoil is not None:
            spoil(step, model)
        opt.step()
        assert all(torch.isfinite(v).all() for v in memories(sparsifier)[0].values() if isinstance(v, torch.Tensor))
    alpha = memories(sparsifier)[0]["log_alpha"].clone()
    if spoil is None:
        sparsifier.freeze()
        assert sparsifier.report().exact
    return alpha


def alike(first, second):
    return float(torch.corrcoef(torch.stack([first, second]))[0, 1])


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [
        (2.0**80, torch.float32),
        (2.0**-60, torch.float32),
        (2.0**60, torch.bfloat16),
        (2.0**900, torch.float64),
        (2.0**-900, torch.float64),
    ],
)
def test_the_scale_of_the_loss_changes_no_bit_of_what_gates_learn(scale, dtype):
    assert torch.equal(learned(lambda _: scale, dtype), learned(dtype=dtype))


@pytest.mark.parametrize("scale", [1e-30, 1e-33, 1e25, 1e34])
def test_nor_does_a_scale_at_the_ends_of_what_a_number_holds_keep_gates_from_learning(scale):
    assert alike(learned(lambda _: scale), learned()) > 0.99


@pytest.mark.parametrize("scale", [1e3, 1e25, 1e37])
@pytest.mark.parametrize("at", [[0], [1], [30], [30, 31, 32]])
def test_a_step_of_huge_gradients_counts_for_a_few(scale, at):
    assert alike(learned(lambda step: scale if step in at else 1.0), learned()) > 0.7


def test_steps_without_gradients_before_the_first_that_has_some_do_not_matter_to_its_scale():
    found = [learned(lambda step, one=one: 0.0 if step < 3 else one) for one in (1.0, 2.0**-70, 2.0**70)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite_and_not_looked_for_leave_gates_finite(bad):
    def spoil(step, model):
        if step in (0, 20, 21):
            model[0].weight.grad[:3] = bad
            model[2].weight.grad.fill_(bad)

    class Still(torch.optim.SGD):
        def step(self, closure=None):
            pass

    still = learned(optimizer=lambda p: Still(p, lr=0.0), spoil=spoil, nonfinite="unchecked")
    assert alike(still, learned()) > 0.7


def test_the_steps_after_one_of_huge_gradients_train_a_network_to_its_target():
    model, opt, batch, sparsifier = sparsify(
        optimizer="adamw", steps=60, schedule=setpoint.Schedule(begin=5, end=40), target=0.5
    )
    for step in range(60):
        inputs, targets = batch(step)
        opt.zero_grad()
        (F.cross_entropy(model(inputs), targets) * (1e25 if step in (6, 20) else 1.0)).backward()
        opt.step()
    assert sparsifier.report().exact
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(math.isfinite(v) for row in sparsifier.history for v in row.values())


def test_layers_without_a_gradient_at_a_step_teach_nothing_and_the_others_go_on():
    model, opt, batch, sparsifier = sparsify(schedule=AT_ONCE)
    for step in range(6):
        inputs, targets = batch(step)
        opt.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        if step % 2:
            model[2].weight.grad = None
        before = [a.clone() for a in alphas(sparsifier)]
        opt.step()
        assert all(bool((a != b).any()) for a, b in zip(alphas(sparsifier), before))
    assert bool(torch.isfinite(memories(sparsifier)[0]["log_alpha"]).all())


def large():
    """(model, optimizer, sparsifier, function that trains): kernels work on one of its layers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 5))
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparsifier = setpoint.Sparsifier(
        model, opt, method="l0", target=0.5, steps=STEPS, schedule=setpoint.Schedule(begin=2, end=15)
    )

    def steps(begin, end):
        for step in range(begin, end):
            inputs = torch.randn(16, 20, generator=torch.Generator().manual_seed(step))
            opt.zero_grad()
            F.cross_entropy(model(inputs), inputs[:, :5].argmax(1)).backward()
            opt.step()

    return model, opt, sparsifier, steps


def test_layers_of_many_weights_resume_in_the_same_bits_and_end_exactly():
    straight, _, whole, steps = large()
    steps(0, STEPS)
    assert whole.report().exact
    for cut in (3, 9):
        first, opt, _, steps = large()
        steps(0, cut)
        saved = copy.deepcopy({"model": first.state_dict(), "optimizer": opt.state_dict()})
        model, opt, sparsifier, steps = large()
        model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["optimizer"])
        steps(cut, STEPS)
        assert same(model.state_dict(), straight.state_dict())
        assert sparsifier.history == whole.history


def test_with_kernels_gates_learn_what_they_learn_without(monkeypatch):
    def after(steps):
        *_, sparsifier, run = large()
        run(0, steps)
        return [z.clone() for z in map(sparsifier._gates.samples, range(3))], memories(sparsifier)[0]["log_alpha"]

    found = [after(steps) for steps in (2, 5)]
    monkeypatch.setattr("setpoint.functional.hard_concrete_steps.usable", lambda tensors: False)
    want = [after(steps) for steps in (2, 5)]
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], want[0][0])), "what is drawn is the same to the bit"
    # Sums over all gates differ by their order in the last bit, and so do a few of the bits that are rounded by chance.
    difference = (found[1][1] - want[1][1]).abs()
    assert float((difference > 1e-4).float().mean()) < 1e-3
    assert float(difference.max()) < 0.05


def test_medians_follow_what_gates_have_learned_without_being_kept():
    model, opt, batch, sparsifier = sparsify(unit="row", schedule=AT_ONCE)
    train(model, opt, batch, 3)
    for i, a in enumerate(alphas(sparsifier)):
        assert torch.equal(sparsifier._gates.open(i), hard_concrete(a).flatten() > 0)
        a.fill_(-5.0)
        assert not bool(sparsifier._gates.open(i).any())


def rank_main(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model, _, batch = build("convnet")
    wrapped = nn.parallel.DistributedDataParallel(model)
    opt = torch.optim.SGD(wrapped.parameters(), lr=0.05, momentum=0.9)
    torch.manual_seed(rank)  # the gates must not depend on it
    sparsifier = setpoint.Sparsifier(wrapped, opt, method="l0", target=0.5, unit="filter", steps=STEPS)
    seen = []
    for step in range(STEPS):
        train(wrapped, opt, batch, 1, start=2 * step + rank)
        if sparsifier._gates.attached:
            seen.append(torch.cat([sparsifier._gates.samples(i) for i in range(3)]))
    norms = list(sparsifier.state_dict()["norms"])
    weights = {name: p.detach() for name, p in model.named_parameters()}
    torch.save({"gates": torch.stack(seen), "norms": norms, "weights": weights}, f"{folder}/{rank}.pt")
    assert sparsifier.report().exact
    torch.distributed.destroy_process_group()


def test_ranks_draw_the_same_gates_and_end_with_the_same_weights(tmp_path):
    mp.spawn(rank_main, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["norms"] == second["norms"] == ["conv1.weight"]
    assert len(first["gates"]) == 8
    assert torch.equal(first["gates"], second["gates"])
    assert same(first["weights"], second["weights"])
