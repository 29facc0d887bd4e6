"""What is dropped and what grows, and that the budget is met exactly throughout."""

import itertools
import warnings

import pytest
import torch
from moving_runs import MOVING, backward, schedule, sparsify
from torch import nn

import setpoint
from setpoint.methods import RigL
from setpoint.recipes.models import build_model
from test_contract import assert_exact

from nets import train


@pytest.mark.parametrize("progress", [20, 30, 40, 280, 290])
def test_the_fraction_falls_as_a_cosine(progress):
    expected = {20: 0.2967, 30: 0.2927, 40: 0.2870, 280: 0.0033, 290: 0.0008}[progress]
    assert RigL().fraction(progress / 300) == pytest.approx(expected, abs=5e-5)
    assert RigL(decay="linear").fraction(progress / 300) == pytest.approx(0.3 * (1 - progress / 300))
    assert RigL(decay="constant").fraction(progress / 300) == 0.3


@pytest.mark.parametrize("decay", ["cosine", "constant"])
def test_so_many_move_at_each_update(decay):
    method = RigL(regrow=False, decay=decay)
    model, opt, batch, sparsifier = sparsify(method, target=0.75, end=300, interval=10, steps=300)
    kept = sum(int(m.sum()) for m in sparsifier.masks.values())
    train(model, opt, batch, 60)
    rows = sparsifier.history
    assert [row["step"] for row in rows] == [0, 10, 20, 30, 40, 50]
    fractions = [method.fraction(row["step"] / 300) for row in rows[1:]]
    assert [row["moved"] for row in rows] == [0.0, *(int(f * kept) / kept for f in fractions)]
    assert all(row["zeros"] == row["asked"] == pytest.approx(0.75) for row in rows)


def by_hand(weight, gradient, mask, fraction, regrow):
    """The paper's Algorithm 1 for one layer, by sorting."""
    active = mask.flatten().nonzero().flatten()
    drop = int(fraction * len(active))
    order = weight.flatten()[active].abs().argsort()
    survivors, dropped = active[order[drop:]], active[order[:drop]]
    candidates = [i for i in range(mask.numel()) if i not in set(survivors.tolist())]
    if not regrow:
        candidates = [i for i in candidates if i not in set(dropped.tolist())]
    pull = gradient.flatten().abs()
    grown = sorted(candidates, key=lambda i: -float(pull[i]))[:drop]
    new = torch.zeros(mask.numel(), dtype=torch.bool)
    grown = torch.tensor(grown, dtype=torch.long)
    new[survivors] = new[grown] = True
    return new.reshape(mask.shape), grown


@pytest.mark.parametrize("regrow", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rigl_drops_and_grows_as_the_algorithm_says(regrow, optimizer):
    method = RigL(regrow=regrow)
    model, opt, batch, sparsifier = sparsify(method, optimizer=optimizer, target=0.5, scope="uniform", end=40)
    regrown = 0
    for step in range(40):
        backward(model, batch, step)
        expected = {}
        if step % 3 == 0 and step:
            for name, mask in sparsifier.masks.items():
                weight = model.get_parameter(name)
                # The bound of what is outside: a layer that is nearly dense has no room to move more.
                expected[name], grown = by_hand(weight.detach(), weight.grad, mask, method.fraction(step / 40), regrow)
                regrown += int(mask.flatten()[grown].sum())
        opt.step()
        for name, mask in expected.items():
            assert torch.equal(sparsifier.masks[name], mask), (step, name)
    assert (regrown > 0) == regrow


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
@pytest.mark.parametrize(
    ("net", "unit", "cost", "scope"),
    [
        ("mlp", "weight", "params", "global"),
        ("mlp", "weight", "params", "erk"),
        ("mlp", "row", "params", "global"),
        ("mlp", (4, 3), "params", "global"),
        ("convnet", (4, 4), "params", "uniform"),
        ("convnet", "kernel", "params", "global"),
        ("convnet", "filter", "units", "global"),
        ("mlp", "2:4", "params", "global"),
    ],
)
def test_budgets_are_exact_at_every_step(method, net, unit, cost, scope):
    target = setpoint.Target(sparsity=0.4, cost=cost)
    model, opt, batch, sparsifier = sparsify(method, net, target=target, unit=unit, scope=scope, steps=20, end=16)
    counts = set()
    for step in range(20):
        assert_exact(sparsifier)
        assert sparsifier.report().exact
        counts.add(sum(int(m.sum()) for m in sparsifier.masks.values()))
        train(model, opt, batch, 1, start=step)
    assert_exact(sparsifier)
    if unit == "weight":
        assert len(counts) == 1


@pytest.mark.filterwarnings("ignore:.*less than one")
@pytest.mark.parametrize("method", ["static", "set", "rigl"])
@pytest.mark.parametrize("target", [setpoint.Target(flops=0.6), setpoint.Target(params=0.5, multiple_of=4), 0.5])
def test_units_that_cross_layers_fit_the_budget_at_every_step(method, target):
    torch.manual_seed(0)
    model = build_model("resnet20", shape=(3, 8, 8), classes=4, width=0.5)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, y = torch.randn(8, 3, 8, 8), torch.randint(4, (8,))
    sparsifier = setpoint.Sparsifier(
        model,
        opt,
        method=setpoint.methods.make_method(method, **({} if method == "static" else {"drop_fraction": 0.5})),
        target=target,
        unit="channel",
        steps=10,
        schedule=schedule(8, 1),
        example_inputs=x,
    )
    supports = []
    for _ in range(10):
        assert sparsifier.report().exact
        supports.append(torch.cat([k.float() for k in sparsifier._support.kept]))
        for name, mask in sparsifier.masks.items():
            assert not bool((model.get_parameter(name)[~mask] != 0).any())
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
    moved = any(not torch.equal(a, b) for a, b in itertools.pairwise(supports))
    assert moved == (method != "static")
    setpoint.compact(sparsifier, x)


@pytest.mark.parametrize("method", MOVING)
def test_coverage_counts_what_was_ever_there(method):
    model, opt, batch, sparsifier = sparsify(method, scope="erk", target=0.7)
    seen = {n: m.clone() for n, m in sparsifier.masks.items()}
    for step in range(30):
        train(model, opt, batch, 1, start=step)
        seen = {n: m | sparsifier.masks[n] for n, m in seen.items()}
        covered = sum(int(m.sum()) for m in seen.values()) / 776
        assert sparsifier.history[-1]["covered"] == pytest.approx(covered)
    assert covered > 0.35


@pytest.mark.parametrize("method", MOVING)
@pytest.mark.parametrize("floor", [1, 4])
def test_floors_hold_at_every_step(method, floor):
    model, opt, batch, sparsifier = sparsify(
        MOVING[method](drop_fraction=0.9), target=0.6, unit="row", floor=floor, steps=12, end=10, interval=1
    )
    for step in range(12):
        assert all(int(k.sum()) >= floor for k in sparsifier._support.kept)
        train(model, opt, batch, 1, start=step)


def test_layers_without_gradient_grow_at_random_and_after_all_others():
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(20, 20, bias=False), "idle": nn.Linear(20, 20, bias=False)})
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    sparsifier = setpoint.Sparsifier(model, opt, method="rigl", target=0.5, steps=20, schedule=schedule(18, 2))
    before = sparsifier.masks
    for _ in range(3):
        opt.zero_grad()
        model["used"](torch.randn(8, 20)).square().mean().backward()
        opt.step()
    grown = {n: m & ~before[n] for n, m in sparsifier.masks.items()}
    assert not bool(grown["idle.weight"].any())
    assert int(grown["used.weight"].sum()) > 20
    # Under budgets of their own the layer can only give to itself, and does not take the first in its order.
    sparsifier.remove()
    sparsifier = setpoint.Sparsifier(
        model, opt, method=RigL(regrow=False), target=0.5, scope="uniform", steps=20, schedule=schedule(18, 2)
    )
    before = sparsifier.masks["idle.weight"]
    for _ in range(3):
        opt.zero_grad()
        model["used"](torch.randn(8, 20)).square().mean().backward()
        opt.step()
    rows = (sparsifier.masks["idle.weight"] & ~before).any(1)
    assert int(rows.sum()) > 12


def test_a_fraction_of_less_than_one_unit_is_said_once():
    model, opt, batch, _ = sparsify(RigL(drop_fraction=0.05), unit="row", target=setpoint.Target(units=16))
    words = r"rigl: drop_fraction=0.05 of the 16 unit\(s\) that stay in 0.weight, 2.weight, 4.weight is less than one"
    with pytest.warns(UserWarning, match=words):
        train(model, opt, batch, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, opt, batch, 20, start=4)


def test_a_dense_layer_has_nothing_to_move_and_is_left_in_peace():
    """What is dropped from it could only grow again, from zero."""
    model, opt, batch, sparsifier = sparsify(RigL(drop_fraction=0.9), target=0.5, scope={"4.*": 0.001, "0.*": 0.01})
    opt.param_groups[0]["lr"] = 0.0
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, opt, batch, 4)
    assert bool(sparsifier.masks["4.weight"].all())
    assert torch.equal(model[4].weight, before["4.weight"])
    # Nor more than there is room for: as many are dropped as are outside.
    outside = int((~sparsifier.masks["0.weight"]).sum())
    assert outside == round(0.01 * 360)
    assert int((model[0].weight == 0).sum()) <= 2 * outside
