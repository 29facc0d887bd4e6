"""DeepHoyer as a method: its pull is the shrinking half of Hoyer-Square's gradient, its strength follows the harm."""

import itertools
import math
from functools import cache

import pytest
import torch
from torch import nn

import setpoint
from setpoint.functional import group_hoyer_square, hoyer_square, project_budget
from setpoint.methods import DeepHoyer
from setpoint.methods import hoyer as module
from setpoint.recipes.data import load_dataset

from nets import build, train

STEPS = 20
LINEAR, CONVOLUTION = (lambda: nn.Linear(12, 10)), (lambda: nn.Conv2d(4, 6, 3))
PULLED = [
    (LINEAR, "weight"),
    (LINEAR, "row"),
    (LINEAR, "column"),
    (LINEAR, (2, 3)),
    (LINEAR, (4, 5)),  # smaller tiles at the edges
    (LINEAR, "2:4"),
    (CONVOLUTION, "filter"),
    (CONVOLUTION, "kernel"),
    (CONVOLUTION, "2:4"),
]


def fixed(strength, **options):
    """A method whose strength does not move, and that ranks by magnitude as `outside` does."""
    return DeepHoyer(start=strength, proportional=0.0, integral=0.0, scale_invariant=False, **options)


def at_rest(model, method, unit="weight", target=0.5, steps=STEPS, **options):
    """(sparsifier, step): a run in which nothing but the method moves a weight."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    schedule = setpoint.Schedule("linear", begin=0, end=1.0, interval=1)
    sparsifier = setpoint.Sparsifier(
        model, optimizer, method=method, target=target, unit=unit, steps=steps, schedule=schedule, **options
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return sparsifier, optimizer.step


def outside(sparsifier, weights):
    """For each layer, the entries that the present budget has no room for."""
    (budget,) = sparsifier._budgets
    partitions = [layer.partition for layer in sparsifier._layers]
    room = budget.room(sparsifier.timeline.ramp(sparsifier.step))
    magnitudes = [p.magnitudes(w) for p, w in zip(partitions, weights)]
    kept = project_budget(magnitudes, room, budget.costs, floors=budget.floors)
    return [p.expand(k.float(), w) == 0 for p, k, w in zip(partitions, kept, weights)]


@pytest.mark.parametrize("name", ["wgsef", "hoyer"])
@pytest.mark.parametrize(("unit", "by_share"), [("weight", False), ("row", True)])
@pytest.mark.parametrize("scale_invariant", [None, False, True])
def test_a_layer_on_another_scale_is_cut_by_share_or_by_magnitude(name, unit, by_share, scale_invariant):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20, bias=False), nn.Linear(20, 20, bias=False))
    with torch.no_grad():
        model[1].weight.mul_(1e-3)
    method = setpoint.methods.make_method(name, scale_invariant=scale_invariant)
    sparsifier, _ = at_rest(model, method, unit, floor=0)
    sparsifier.freeze()
    first, second = (layer.units_kept / layer.units for layer in sparsifier.report().layers)
    if by_share if scale_invariant is None else scale_invariant:
        assert abs(first - second) < 0.25
    else:
        assert (first, second) == (1.0, 0.0)


@pytest.mark.parametrize(("layer", "unit"), PULLED, ids=[str(unit) for _, unit in PULLED])
def test_the_pull_is_the_shrinking_half_of_the_gradient(layer, unit):
    torch.manual_seed(0)
    model, strength = layer(), 0.05
    sparsifier, step = at_rest(model, fixed(strength), unit, target=None if unit == "2:4" else 0.5)
    for _ in range(5):
        weight = model.weight.detach().clone().requires_grad_()
        magnitudes = sparsifier._layers[0].partition.magnitudes(weight)
        hoyer_square(magnitudes).backward()
        point = float((magnitudes.square().sum() / magnitudes.sum()).detach())
        step()
        (gone,) = outside(sparsifier, [weight.detach()])
        assert 0 < int(gone.sum()) < gone.numel()
        with torch.no_grad():
            inward = gone & (weight.grad * weight > 0)
            moved = weight - strength * point**2 / 2 * torch.where(inward, weight.grad, 0.0)
            want = torch.where(moved * weight > 0, moved, 0.0)
        assert torch.allclose(model.weight, want, atol=1e-7)
        assert torch.equal(model.weight[~gone], weight[~gone]), "what the budget has room for was touched"
        assert bool((model.weight != weight)[gone].any())


def test_for_rows_and_kernels_that_gradient_is_group_hoyer_squares():
    for layer, unit, inside in [(LINEAR, "row", 1), (LINEAR, "column", 0), (CONVOLUTION, "kernel", (2, 3))]:
        model = layer()
        sparsifier, _ = at_rest(model, DeepHoyer(), unit)
        of_units = hoyer_square(sparsifier._layers[0].partition.magnitudes(model.weight.detach()))
        assert torch.allclose(of_units, group_hoyer_square(model.weight.detach(), inside))


def test_in_a_layer_above_its_trimming_point_all_that_goes_is_pressed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    with torch.no_grad():
        model[1].weight.mul_(0.01)
        before = model[1].weight.abs()
    sparsifier, step = at_rest(model, fixed(0.1), target=0.9, steps=2)
    step()
    _, gone = outside(sparsifier, [model[0].weight.detach(), before])
    largest = before[gone].max()
    assert float(before.square().sum() / before.sum()) < float(largest)
    want = torch.where(gone, (before - 0.1 * (1.1 * largest - before)).clamp_min(0.0), before)
    assert torch.allclose(model[1].weight.abs(), want, atol=1e-8)
    assert bool((model[1].weight.abs()[gone] < before[gone]).all())


@pytest.mark.parametrize("unit", ["weight", "row", "column", (3, 2), "2:4"])
@pytest.mark.parametrize("across", [False, True])
def test_no_update_inflates_or_flips_a_weight(unit, across):
    model, _, _ = build("mlp")
    sparsifier, step = at_rest(model, DeepHoyer(across=across, start=1.0), unit, target=0.4)
    last = [p.detach().clone() for p in model.parameters()]
    while sparsifier.phase != "frozen":
        step()
        for before, after in zip(last, model.parameters()):
            assert bool((after.abs() <= before.abs()).all())
            assert bool((after * before >= 0).all())
        last = [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("unit", ["weight", "row"])
def test_the_optimizers_moments_know_nothing_of_the_pull(unit):
    """The gradients of a linear loss do not depend on the weights, so that all of the difference is the method's."""

    def run(method):
        torch.manual_seed(0)
        model = nn.Linear(6, 8)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if method is not None:
            setpoint.Sparsifier(model, optimizer, method=method, target=0.5, unit=unit, steps=STEPS)
        for step in range(STEPS // 2 - 1):  # up to the last step before the freeze
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        return model.weight, optimizer.state[model.weight]

    pressed, state = run(DeepHoyer(start=1.0))
    plain, want = run(None)
    assert not torch.equal(pressed, plain)
    assert torch.equal(state["exp_avg"], want["exp_avg"])
    assert torch.equal(state["exp_avg_sq"], want["exp_avg_sq"])


def controlled(method, harms):
    """The strengths that the controller is to answer with, written out once more."""
    log_strength, last, strengths = math.log(method.start), None, []
    for harm in harms:
        error = min(max(math.log(max(harm, 1e-300) / method.tolerance), -2.0), 2.0)
        if last is not None:
            change = method.integral * error + method.proportional * (error - last)
            log_strength += min(max(change, -0.5), 0.5)
            log_strength = min(max(log_strength, math.log(1e-4)), math.log(10.0))
        strengths.append(math.exp(log_strength))
        last = error
    return strengths


HARMS = {
    "up-and-down": [0.001, 0.004, 0.03, 0.02, 0.011, 0.009, 0.0, 0.5, 0.01, 0.01],
    "too-much": [0.9] * 60 + [0.0] * 40,
    "none": [0.0] * 40 + [0.02] * 20,
}


@pytest.mark.parametrize("harms", HARMS.values(), ids=HARMS)
@pytest.mark.parametrize("method", [DeepHoyer(), DeepHoyer(tolerance=0.05, start=1.0, proportional=0.2, integral=0.05)])
def test_the_controller_is_proportional_and_integral_and_bounded(monkeypatch, harms, method):
    coming = iter(harms)
    monkeypatch.setattr(module, "_energy_outside", lambda *_: next(coming))
    sparsifier, step = at_rest(nn.Linear(4, 4), method, steps=len(harms) + 1)
    for _ in harms:
        step()
    strengths = [row["strength"] for row in sparsifier.history]
    assert [row["harm"] for row in sparsifier.history] == harms
    assert strengths == pytest.approx(controlled(method, harms), rel=1e-9)
    assert all(1e-4 * 0.999 <= s <= 10.0 * 1.001 for s in strengths)


def test_the_strength_rises_above_the_tolerance_and_falls_below_it():
    integral = DeepHoyer(proportional=0.0, integral=0.1, tolerance=0.01, start=0.1)
    for harm, sign in [(0.02, 1), (0.01, 0), (0.005, -1)]:
        strengths = controlled(integral, [harm] * 4)
        assert all((b > a) - (b < a) == sign for a, b in itertools.pairwise(strengths))


@pytest.mark.parametrize("unit", ["weight", "row", "2:4"])
def test_harm_is_the_share_of_the_weights_energy_that_the_cut_would_take(unit):
    model, _, _ = build("mlp")
    sparsifier, step = at_rest(model, fixed(0.1), unit, target=None if unit == "2:4" else 0.5)
    while sparsifier.step < STEPS - 1:
        weights = [layer.parts[0].parameter.detach().clone() for layer in sparsifier._layers]
        step()
        if len(sparsifier._budgets) > 1:
            continue
        lost = sum(float(w[gone].square().sum()) for w, gone in zip(weights, outside(sparsifier, weights)))
        whole = sum(float(w.square().sum()) for w in weights)
        assert sparsifier.history[-1]["harm"] == pytest.approx(lost / whole, rel=1e-5)
    # Of a pattern the smaller half of each group goes, which is never near the whole.
    assert sparsifier.history[-1]["harm"] < 0.5


@pytest.mark.parametrize("method", ["hoyer", DeepHoyer(across=True)])
@pytest.mark.parametrize("interval", [1, 3])
def test_history_has_strength_and_harm_at_every_update(method, interval):
    model, opt, batch = build("mlp")
    schedule = setpoint.Schedule(begin=2, end=17, interval=interval)
    scope = {"0.*": 0.5, "2.*": 0.7}
    sparsifier = setpoint.Sparsifier(model, opt, method=method, unit="row", scope=scope, steps=STEPS, schedule=schedule)
    train(model, opt, batch, STEPS)
    assert [row["step"] for row in sparsifier.history] == list(range(2 + interval, 17, interval))
    for row in sparsifier.history:
        assert 1e-4 <= row["strength"] <= 10.0
        assert 0.0 <= row["harm"] <= 1.0


def test_across_presses_the_inputs_of_rows_by_the_same_rule():
    torch.manual_seed(0)
    model = nn.Linear(12, 10)
    _, step = at_rest(model, fixed(0.2, across=True), "row", target=0.5, steps=5)
    weight = model.weight.detach().clone()
    step()
    want = weight
    for dim in (0, 1):
        norms = weight.norm(dim=dim, keepdim=True)
        count = round(0.9 * norms.numel())  # of the linear ramp's first fifth
        gone = norms < norms.flatten().sort(descending=True).values[count - 1]
        point = norms.square().sum() / norms.sum()
        left = (norms - 0.2 * (point - norms).clamp_min(0.0)).clamp_min(0.0) / norms
        want = want * torch.where(gone, left, 1.0)
    assert torch.allclose(model.weight, want, atol=1e-7)
    assert not torch.equal(model.weight, weight)


@pytest.mark.parametrize(
    ("net", "unit", "acts"),
    [
        ("convnet", "row", True),
        ("convnet", "filter", True),
        ("convnet", "column", True),
        ("mlp", "row", True),
        ("mlp", "weight", False),
        ("mlp", (3, 2), False),
        ("mlp", "2:4", False),
        ("convnet", "kernel", False),
    ],
)
def test_across_acts_on_rows_filters_and_columns_alone(net, unit, acts):
    def run(across):
        model, opt, batch = build(net)
        method = DeepHoyer(across=across, start=0.5)
        sparsifier = setpoint.Sparsifier(model, opt, method=method, target=0.4, unit=unit, steps=STEPS)
        train(model, opt, batch, STEPS // 2 - 1)
        return sparsifier, opt, batch, model

    plain = run(False)[-1]
    sparsifier, opt, batch, pressed = run(True)
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), pressed.parameters())) == acts
    train(pressed, opt, batch, STEPS)
    assert sparsifier.report().exact


def stuck(kind, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    with torch.no_grad():
        if kind == "zero-layer":
            model[2].weight.zero_()
        if kind == "all-zero":
            for parameter in model.parameters():
                parameter.zero_()
        if kind == "all-equal":
            for parameter in model.parameters():
                parameter.fill_(0.5)
        if kind in ("tiny", "huge"):
            limits = torch.finfo(dtype)
            for parameter in model.parameters():
                parameter.mul_(limits.tiny**0.8 if kind == "tiny" else limits.max**0.4)
    return model.to(dtype)


@pytest.mark.parametrize("kind", ["plain", "zero-layer", "all-zero", "all-equal", "tiny", "huge"])
@pytest.mark.parametrize(("unit", "target"), [("weight", 0.5), ("row", 0.5), ("row", 0.98), ("2:4", None)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_degenerate_layers_do_no_harm(kind, unit, target, dtype):
    """Among them a layer of a single unit, and a budget that in the end has no room at all."""
    model = stuck(kind, dtype)
    floor = 0 if target == 0.98 else 1
    sparsifier, step = at_rest(model, DeepHoyer(across=True), unit, target=target, floor=floor)
    for _ in range(STEPS):
        step()
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert all(math.isfinite(row["harm"]) and math.isfinite(row["strength"]) for row in sparsifier.history)
    assert sparsifier.report().exact
    if floor == 0:
        assert sparsifier.report().params_kept == 0


# The digits, and a network whose cut would hurt.


@cache
def digits():
    data = load_dataset("digits", seed=0)
    return [(part.inputs.flatten(1), part.targets) for part in (data.train, data.validation)]


def validation_loss(model):
    inputs, targets = digits()[1]
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(inputs), targets))


def learn(method=None, penalty=0.0, unit="weight", target=0.8, steps=500):
    """(model, sparsifier, rise of the validation loss by the cut)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    sparsifier, rise = None, 0.0
    if method is not None:
        sparsifier = setpoint.Sparsifier(model, optimizer, method=method, target=target, unit=unit, steps=steps)
    (inputs, targets), generator = digits()[0], torch.Generator().manual_seed(1)
    for _ in range(steps):
        batch = torch.randint(len(inputs), (64,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
        if penalty:
            loss = loss + penalty * (hoyer_square(model[0].weight) + hoyer_square(model[2].weight))
        loss.backward()
        if sparsifier is not None and sparsifier.step == sparsifier.timeline.end - 1:
            before = validation_loss(model)
            sparsifier.freeze()
            rise = validation_loss(model) - before
        optimizer.step()
    return model, sparsifier, rise


@pytest.mark.parametrize(("unit", "target"), [("weight", 0.8), ("row", 0.5), ("2:4", None)])
def test_the_cut_is_made_harmless(unit, target):
    _, driven, rise = learn(DeepHoyer(tolerance=0.01), unit=unit, target=target)
    assert driven.history[-1]["harm"] < 0.03
    assert abs(rise) < 0.15
    assert driven.report().exact
    # Without pressure the same cut is an accident.
    _, idle, shock = learn(fixed(1e-4), unit=unit, target=target)
    assert idle.history[-1]["harm"] > 3 * driven.history[-1]["harm"]
    assert shock > 2 * abs(rise) + 0.05


def test_no_decoys_grow():
    """Weights above the trimming point run away under Adam if the penalty is in the loss, and do not here."""
    dense, pressed, penalised = (
        max(float(model[i].weight.detach().abs().max()) for i in (0, 2))
        for model in (learn()[0], learn(DeepHoyer())[0], learn(penalty=1e-3)[0])
    )
    assert pressed < 1.6 * dense
    assert penalised > 2.5 * dense
