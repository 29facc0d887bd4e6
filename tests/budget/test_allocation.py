"""Targets, scopes and schedules: who may keep how much, and when."""

import itertools
import math

import pytest
import torch

import setpoint
from setpoint.budget import Schedule, Target, allocate, erk_densities
from setpoint.units import select

from nets import build, train


def layers(net="mlp", unit="weight"):
    model, optimizer, _ = build(net)
    return select(model, optimizer, unit).layers


def test_global_budget_is_the_nearest_count():
    (budget,) = allocate(layers(), Target(sparsity=0.9))
    assert budget.total == 20 * 18 + 18 * 16 + 16 * 8
    assert budget.kept == round(0.1 * budget.total)


@pytest.mark.parametrize(
    ("target", "kept"), [(Target(params=100), 100), (Target(params=0.25), 194), (Target(units=77), 77)]
)
def test_budgets_of_what_may_stay(target, kept):
    (budget,) = allocate(layers(), target)
    assert budget.kept == kept


def test_uniform_gives_every_layer_its_own():
    for budget, total in zip(allocate(layers(), Target(sparsity=0.75), "uniform"), (360, 288, 128)):
        assert budget.kept == round(0.25 * total)


def test_erk_follows_the_formula_and_meets_the_whole():
    shapes = [(18, 20), (16, 18), (8, 16)]
    sizes = [360, 288, 128]
    densities = erk_densities(shapes, sizes, 0.3)
    assert sum(d * s for d, s in zip(densities, sizes)) == pytest.approx(0.3 * 776)
    ratios = [d * s / sum(shape) for d, s, shape in zip(densities, sizes, shapes)]
    assert ratios == pytest.approx([ratios[0]] * 3)
    # A layer that would be denser than dense is dense, and the others share the rest.
    capped = erk_densities([(1000, 1000), (10, 10)], [1e6, 100], 0.5)
    assert capped[1] == 1.0
    assert capped[0] * 1e6 + 100 == pytest.approx(0.5 * 1_000_100)
    budgets = allocate(layers(), Target(sparsity=0.7), "erk")
    assert sum(b.kept for b in budgets) == round(0.3 * 776)
    for budget, density in zip(budgets, densities):
        assert budget.kept == pytest.approx(density * budget.total, abs=2)


@pytest.mark.parametrize(
    ("sparsity", "scale", "expected"),
    [
        (0.5, 278.476190, (1.0, 1.0, 0.74786, 0.36826, 1.0)),
        (0.9, 50.818837, (1.0, 0.18473, 0.13648, 0.06720, 1.0)),
        (0.98, 7.724637, (0.32633, 0.02808, 0.02074, 0.01022, 0.80264)),
    ],
)
def test_erk_of_a_small_convolutional_network(sparsity, scale, expected):
    shapes = [(64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3), (10, 256)]
    sizes = [math.prod(shape) for shape in shapes]
    densities = erk_densities(shapes, sizes, 1.0 - sparsity)
    assert densities == pytest.approx(expected, abs=5e-6)
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes)]
    assert [d / r for d, r in zip(densities, raw) if d < 1.0] == pytest.approx(
        [scale] * sum(d < 1.0 for d in densities), rel=1e-6
    )


def test_globs_name_layers_and_the_target_serves_the_others():
    budgets = allocate(layers(), Target(sparsity=0.5), {"0.*": 0.9, "*": 0.8})
    assert [b.requested for b in budgets] == [0.9, 0.8, 0.8]
    budgets = allocate(layers(), Target(sparsity=0.5), {"0.*": 0.9})
    assert [b.requested for b in budgets] == [0.9, 0.5, 0.5]
    budgets = allocate(layers(), None, {"2.*": 0.9})
    assert [b.layers for b in budgets] == [(1,)]


def test_costs_of_units_and_of_their_entries():
    by_units = allocate(layers(unit="row"), Target(sparsity=0.5, cost="units"))[0]
    by_params = allocate(layers(unit="row"), Target(sparsity=0.5, cost="params"))[0]
    assert by_units.total == 18 + 16 + 8
    assert by_params.total == 776
    assert [float(c) for c in by_params.costs] == [20, 18, 16]


def test_patterns_keep_their_fixed_part():
    (budget,) = allocate(layers(unit="1:4"), Target(sparsity=0.5))
    assert budget.fixed == 18 * 5 + 16 * 5 + 8 * 4
    assert budget.room(0.0) == budget.total - budget.fixed
    assert budget.room(1.0) == budget.kept - budget.fixed


def test_floor_raises_what_a_layer_keeps():
    budgets = allocate(layers(unit="row"), Target(sparsity=0.97, cost="units"), "uniform")
    assert [b.kept for b in budgets] == [1, 1, 1]
    (budget,) = allocate(layers(), Target(sparsity=0.5), floor=100)
    assert budget.floors == (100, 100, 100)


@pytest.mark.parametrize("shape", ["cubic", "linear", "one-shot"])
def test_ramps_rise_from_nothing_to_everything(shape):
    schedule = Schedule(shape)
    values = [schedule.ramp(p / 50) for p in range(51)]
    assert values[0] == 0.0
    assert values[-1] == 1.0
    assert all(a <= b for a, b in itertools.pairwise(values))


def test_a_constant_budget_is_the_targets_from_the_begin_on():
    line = Schedule("constant", begin=4, end=8, interval=1).timeline(10)
    assert [line.ramp(step) for step in range(10)] == [0.0] * 4 + [1.0] * 6
    assert Schedule("constant", begin=0).timeline(10).ramp(0) == 1.0
    assert Schedule("cubic", begin=0).timeline(10).ramp(0) == 0.0


@pytest.mark.parametrize("method", ["magnitude", "gsp", "wgsef", "hoyer", "l0"])
def test_a_constant_budget_with_methods_that_begin_dense(method):
    model, optimizer, batch = build("mlp")
    schedule = Schedule("constant", begin=4, end=10, interval=1)
    sparsifier = setpoint.Sparsifier(model, optimizer, method=method, target=0.7, steps=12, schedule=schedule)
    train(model, optimizer, batch, 4)
    assert sparsifier.sparsity == 0.0
    train(model, optimizer, batch, 8, start=4)
    assert sparsifier.history[0]["asked"] == pytest.approx(round(0.7 * 776) / 776)
    assert sparsifier.report().exact
    assert sparsifier.report().params_kept == round(0.3 * 776)


def test_timeline_phases_and_updates():
    line = Schedule("cubic", 0.1, 0.7, 5).timeline(100)
    assert (line.begin, line.end) == (10, 70)
    assert [line.phase(s) for s in (9, 10, 69, 70)] == ["dense", "sparsify", "sparsify", "frozen"]
    assert [s for s in range(101) if line.updates(s)] == list(range(15, 70, 5))
    assert line.ramp(5) == 0.0
    assert line.ramp(70) == 1.0
    assert line.ramp(40) == pytest.approx(1 - 0.5**3)


def test_default_interval_makes_about_a_hundred_updates():
    assert Schedule().timeline(10_000).interval == 40
    assert Schedule().timeline(50).interval == 1


def test_global_scope_keeps_every_layer_alive_where_magnitudes_would_not():
    """A layer of tiny weights loses all but its floor, and no more."""
    model, optimizer, _ = build("mlp")
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
    sparsifier = setpoint.Sparsifier(model, optimizer, method="magnitude", target=0.6, steps=10, floor=3)
    sparsifier.freeze()
    kept = {layer.name: layer.params_kept for layer in sparsifier.report().layers}
    assert kept["2.weight"] == 3
    assert sum(kept.values()) == round(0.4 * 776)


def test_scale_invariant_projection_shares_the_budget_whatever_the_scales():
    masks = []
    for factor in (1.0, 1e-6):
        model, optimizer, _ = build("mlp")
        with torch.no_grad():
            model[2].weight.mul_(factor)
        sparsifier = setpoint.Sparsifier(model, optimizer, method="gsp", target=0.6, steps=10)
        sparsifier.freeze()
        masks.append(sparsifier.masks)
    assert all(torch.equal(masks[0][n], masks[1][n]) for n in masks[0])


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("vectors", ["layer", "row", "column"])
def test_weighted_projection_lets_heavy_units_go_first(vectors, debias):
    model, optimizer, _ = build("mlp")
    heavy = torch.ones(18, 20)
    heavy[:, ::2] = 50.0
    method = setpoint.methods.GroupedSparseProjection(vectors=vectors, weights={"0.weight": heavy}, debias=debias)
    sparsifier = setpoint.Sparsifier(model, optimizer, method=method, target=0.4, steps=10, scope="uniform")
    sparsifier.freeze()
    kept = sparsifier.masks["0.weight"]
    assert int(kept[:, 1::2].sum()) > 3 * int(kept[:, ::2].sum())
    assert sparsifier.report().exact


def test_kernels_of_a_pointwise_convolution_are_projected_too():
    """Vectors of one entry would never be made sparse: such a layer takes its filters instead."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(8, 16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = setpoint.methods.GroupedSparseProjection(vectors="kernel")
    sparsifier = setpoint.Sparsifier(model, optimizer, method=method, target=0.7, steps=10)
    before = model[1].weight.detach().clone().abs()
    sparsifier.freeze()
    mask = sparsifier.masks["1.weight"]
    assert 0.05 < float(mask.float().mean()) < 0.95
    for row, kept in zip(before.flatten(1), mask.flatten(1)):
        if 0 < int(kept.sum()) < kept.numel():
            assert float(row[kept].min()) >= float(row[~kept].max())
