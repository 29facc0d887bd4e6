"""What the options of the envelope method do, and what it refuses."""

import pytest
import torch
from torch import nn

import setpoint
from setpoint.methods import GroupSparseEnvelope
from setpoint.methods import wgsef as module

from nets import build, train

STEPS = 40


def recorded(monkeypatch, method, steps=STEPS, unit="row", lr=0.1):
    """The arguments of every proximal map of a run."""
    calls, prox = [], module.prox_of_values

    def record(magnitudes, room, strength, costs, weights=None, metric=None, *, debias=False):
        calls.append({"room": room, "strength": strength, "weights": weights, "metric": metric})
        return prox(magnitudes, room, strength, costs, weights, metric, debias=debias)

    monkeypatch.setattr(module, "prox_of_values", record)
    model = nn.Linear(4, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    schedule = setpoint.Schedule(begin=0, end=1.0, interval=1)
    setpoint.Sparsifier(model, optimizer, method=method, target=0.5, unit=unit, steps=steps, schedule=schedule)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    return calls


@pytest.mark.parametrize(("rise", "power"), [(None, 2), ("quadratic", 2), ("linear", 1), ("constant", 0)])
def test_debiased_strengths_rise_and_sum_to_the_time(monkeypatch, rise, power):
    calls = recorded(monkeypatch, GroupSparseEnvelope(time=2.0, rise=rise), steps=400)
    strengths = [call["strength"] for call in calls]
    assert sum(strengths) == pytest.approx(2.0, rel=0.01)
    assert strengths[99] == pytest.approx(strengths[199] / 2**power)


@pytest.mark.parametrize(("rise", "power"), [(None, 0), ("quadratic", 2), ("linear", 1), ("constant", 0)])
def test_the_convex_strength_rises_to_what_was_asked(monkeypatch, rise, power):
    calls = recorded(monkeypatch, GroupSparseEnvelope(debias=False, strength=0.01, rise=rise), steps=400)
    strengths = [call["strength"] for call in calls]
    assert strengths[-1] == pytest.approx(0.1 * 0.01 * (399 / 400) ** power)
    assert strengths[99] == pytest.approx(strengths[199] / 2**power)


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize(("level", "first"), [("ramp", 24 * (1 - 0.5 * (1 - 0.975**3))), ("target", 12)])
def test_the_level_is_that_of_the_schedule_or_of_the_target(monkeypatch, debias, level, first):
    calls = recorded(monkeypatch, GroupSparseEnvelope(debias=debias, level=level))
    assert calls[0]["room"] == pytest.approx(first)
    assert calls[-1]["room"] == pytest.approx(12, abs=0.01)


def cut_by(weights, unit, target):
    """What the cut leaves of untrained weights."""
    torch.manual_seed(0)
    model = nn.Linear(4, 6, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    method = GroupSparseEnvelope(weights={"weight": weights})
    sparsifier = setpoint.Sparsifier(model, optimizer, method=method, target=target, unit=unit, steps=10)
    sparsifier.freeze()
    return sparsifier.masks["weight"]


def test_the_cut_takes_units_of_larger_weight_first():
    torch.manual_seed(0)
    norms = nn.Linear(4, 6, bias=False).weight.detach().norm(dim=1)
    weights = torch.tensor([4.0, 1.0, 0.0, 9.0, 1.0, 0.25])
    kept = cut_by(weights.reshape(6, 1, 1), "row", setpoint.Target(units=3)).any(1)
    scores = norms / weights.sqrt()
    assert bool(kept[2]), "a unit of weight 0 stays"
    assert torch.equal(kept, scores >= scores.sort().values[-3])
    assert not torch.equal(kept, norms >= norms.sort().values[-3]), "and not by magnitude alone"


def test_the_cut_of_single_weights_takes_weights_shaped_as_the_parameter():
    weights = torch.ones(6, 4)
    weights[2, 1], weights[3, 3] = 0.0, 1e12
    kept = cut_by(weights, "weight", setpoint.Target(units=23))
    assert int((~kept).sum()) == 1
    assert not bool(kept[3, 3])


@pytest.mark.parametrize("unit", ["row", "weight"])
def test_debiased_map_at_full_strength_cuts_the_heaviest_and_leaves_the_free(unit):
    torch.manual_seed(0)
    model = nn.Linear(4, 6, bias=False)
    before = model.weight.detach().clone()
    weights = torch.full((6, 4) if unit == "weight" else (6, 1, 1), 5.0)
    weights[0] = 0.0
    free = 4 if unit == "weight" else 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    setpoint.Sparsifier(
        model,
        optimizer,
        method=GroupSparseEnvelope(weights={"weight": weights}, time=1e9, level="target"),
        target=setpoint.Target(units=2 * free),
        unit=unit,
        steps=10,
        schedule=setpoint.Schedule(begin=0, end=5, interval=1),
        floor=0,
    )
    model.weight.sum().backward()
    optimizer.step()
    assert torch.equal(model.weight[0], before[0])
    assert int((model.weight[1:] != 0).sum()) == 4, "what the free leave is spent on the others"


def test_all_weights_zero_leave_everything_to_the_cut(monkeypatch):
    weights = {"weight": torch.zeros(6, 1, 1)}
    for debias in (True, False):
        assert recorded(monkeypatch, GroupSparseEnvelope(debias=debias, weights=weights))


@pytest.mark.parametrize("groups", [(0.0, 0.0), (0.0, 0.1)])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_convex_form_at_a_learning_rate_of_zero_moves_nothing(kind, groups):
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5))
    before = model[0].weight.detach().clone()
    optimizer = kind([{"params": layer.parameters(), "lr": lr} for layer, lr in zip(model, groups)], lr=0.1)
    method = GroupSparseEnvelope(debias=False, strength=10.0)
    schedule = setpoint.Schedule(begin=0, end=10, interval=1)
    setpoint.Sparsifier(model, optimizer, method=method, target=0.5, unit="row", steps=10, schedule=schedule)
    for _ in range(5):
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    assert torch.equal(model[0].weight, before)


def test_convex_form_leaves_a_parameter_that_adam_never_moved():
    model = nn.ModuleList([nn.Linear(4, 6), nn.Linear(4, 6)])
    before = model[1].weight.detach().clone()
    optimizer = torch.optim.Adam(model.parameters())
    method = GroupSparseEnvelope(debias=False, strength=10.0)
    schedule = setpoint.Schedule(begin=0, end=10, interval=1)
    setpoint.Sparsifier(model, optimizer, method=method, target=0.5, unit="row", steps=10, schedule=schedule)
    model[0](torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    assert torch.equal(model[1].weight, before)


OPTIONS = [
    {"debias": False, "strength": 0.05, "rise": "linear"},
    {"debias": False, "strength": 0.05, "level": "target", "weights": {"0.weight": torch.rand(18, 1, 1)}},
    {"rise": "constant", "weights": {"2.weight": torch.rand(16, 1, 1)}},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "amsgrad"])
@pytest.mark.parametrize("cut", [4, 5, 17, 20, 31])
def test_resumed_run_ends_in_the_same_bits(tmp_path, options, optimizer, cut):
    def fresh():
        model, opt, batch = build("mlp", "sgd" if optimizer == "sgd" else "adamw")
        if optimizer == "amsgrad":
            opt = torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=True)
        sparsifier = setpoint.Sparsifier(
            model, opt, method=GroupSparseEnvelope(**options), target=0.6, unit="row", steps=STEPS
        )
        return model, opt, batch, sparsifier

    model, opt, batch, _ = fresh()
    train(model, opt, batch, STEPS)
    first, first_opt, batch, _ = fresh()
    train(first, first_opt, batch, cut)
    torch.save({"model": first.state_dict(), "optimizer": first_opt.state_dict()}, tmp_path / "checkpoint.pt")
    second, second_opt, batch, sparsifier = fresh()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    second.load_state_dict(saved["model"])
    second_opt.load_state_dict(saved["optimizer"])
    train(second, second_opt, batch, STEPS - cut, start=cut)
    assert sparsifier.phase == "frozen"
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), second.state_dict().values()))
    for p, q in zip(model.parameters(), second.parameters()):
        assert all(torch.equal(v, second_opt.state[q][k]) for k, v in opt.state[p].items() if v is not None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"time": 0.0}, "time=0.0"),
        ({"time": float("inf")}, "time=inf"),
        ({"strength": -1.0}, "strength=-1.0"),
        ({"strength": float("nan")}, "strength=nan"),
        ({"level": "half"}, "'half'.*ramp, target"),
        ({"rise": "cubic"}, "'cubic'.*quadratic, linear, constant"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        GroupSparseEnvelope(**options)


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize(
    ("unit", "weights", "words"),
    [
        ("row", {"other": torch.ones(1)}, "'other'.*: weight"),
        ("row", {"weight": -torch.ones(1)}, "'weight'.*not negative"),
        ("row", {"weight": torch.tensor(float("nan"))}, "'weight'.*finite"),
        ("row", {"weight": torch.tensor(float("inf"))}, "'weight'.*finite"),
        ("row", {"weight": torch.ones(6)}, r"\(6,\).*\(1, 6, 1, 1\)"),
        ("row", {"weight": torch.ones(6, 4)}, r"\(6, 4\).*\(1, 6, 1, 1\)"),
        ("weight", {"weight": torch.ones(4, 6)}, r"\(4, 6\).*\(1, 6, 4, 1\)"),
    ],
)
def test_weights_that_do_not_fit(debias, unit, weights, words):
    model = nn.Linear(4, 6)
    method = GroupSparseEnvelope(debias=debias, weights=weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=words):
        setpoint.Sparsifier(model, optimizer, method=method, target=0.5, unit=unit, steps=10)


@pytest.mark.parametrize(
    ("kind", "unit", "words"),
    [
        (torch.optim.RMSprop, "weight", r"RMSprop.*SGD, Adam, AdamW.*debias=True"),
        (torch.optim.Adagrad, "row", r"Adagrad.*SGD, Adam, AdamW.*debias=True"),
        (torch.optim.AdamW, "2:4", r"AdamW.*'weight'.*N:M.*possible: SGD.*debias=True"),
        (torch.optim.Adam, "3:4", r"Adam.*'weight'.*N:M.*possible: SGD.*debias=True"),
    ],
)
def test_optimizers_that_the_convex_form_cannot_follow(kind, unit, words):
    model = nn.Linear(4, 6)
    with pytest.raises(ValueError, match=words):
        setpoint.Sparsifier(
            model,
            kind(model.parameters()),
            method=GroupSparseEnvelope(debias=False),
            target=0.2,
            unit=unit,
            steps=10,
        )
