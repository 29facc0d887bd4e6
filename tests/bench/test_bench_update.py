"""Updates on a stack of weights: all phases, in the right one, and nothing that the dense step leaves behind."""

import math
from functools import partial

import pytest
import torch

from setpoint.bench.stack import Gradients, Stack
from setpoint.bench.update import DENSE, PEAK, StackTraining, update_cost, update_peak
from setpoint.bench.work import Pace
from setpoint.methods import method_names

TINY = Stack(3, 24)
ONCE = Pace(repeats=3, seconds=1e-3)


def training(method, *, unit="weight", updates=True, turns=4):
    return StackTraining(TINY, TINY.build(), method, unit, 0.9, updates=updates, turns=turns)


@pytest.mark.parametrize("unit", ["weight", "row"])
def test_every_method_through_all_phases(unit):
    found = update_cost(TINY, unit, method_names(), ONCE)
    assert [row.work for row in found] == list(method_names())
    for row in found:
        phases = {"between", "frozen", "dense step"} | ({"with an update"} if row.work != "static" else set())
        assert set(row.figures) == phases
        assert row.against == "one pass"
        assert all(math.isfinite(value) for value in row.figures.values())
        assert row.ratio == row.figures.get("with an update", row.figures["between"])
        assert row.ms > 0
        assert row.figures[DENSE] > 0
        assert ("forward" in row.note) == (row.work == "l0")


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("updates", [False, True])
def test_trainings_are_in_the_midst_of_their_phase(method, updates):
    run = training(method, updates=updates)
    sparsifier = run.sparsifier
    done = len(sparsifier.history)
    assert sparsifier.phase == "sparsify"
    assert done >= 1
    run.take(4)
    assert sparsifier.phase == "sparsify"
    assert len(sparsifier.history) - done == (4 if updates and run.moves else 0)
    assert sparsifier.report().skipped_steps == 0
    run.freeze()
    assert sparsifier.exact
    run.take(2)
    assert sparsifier.exact


def test_the_dense_step_changes_nothing():
    run = training("gsp")
    before = [parameter.clone() for parameter in run.model.parameters()]
    dense = [call for name, call in run.parts if name == DENSE]
    assert len(dense) == 1
    dense[0]()
    assert all(torch.equal(old, new) for old, new in zip(before, run.model.parameters()))


def test_gradients_stay_in_their_memory():
    model = TINY.build()
    gradients = Gradients(model)
    places = [parameter.grad.data_ptr() for parameter in model.parameters()]
    before = [parameter.grad.clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad.zero_()
    gradients.fill()
    assert [parameter.grad.data_ptr() for parameter in model.parameters()] == places
    assert all(torch.equal(old, parameter.grad) for old, parameter in zip(before, model.parameters()))
    assert all(bool((grad != 0).all()) for grad in before)
    assert not torch.equal(before[0], before[1])


def test_stacks():
    before = torch.random.get_rng_state()
    model = Stack(2, 100).build()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert sum(parameter.numel() for parameter in model.parameters()) == Stack(2, 100).count == 20_000
    assert float(model[0].weight.detach().std()) == pytest.approx(0.1, rel=0.05)
    assert Stack().title == "24 Linear of 2048 x 2048, 101 M weights"
    assert Stack(4, 1024).scaled(0.25) == Stack(4, 512)


def test_resident_set(monkeypatch):
    # Processes of their own take seconds to begin: what is run in them is run here instead.
    asked = []

    def rise(make):
        steps = make(0.02)()
        asked.append(None if steps.sparsifier is None else steps.sparsifier.phase)
        return 5 * TINY.bytes if steps.sparsifier is not None else 3 * TINY.bytes

    monkeypatch.setattr("setpoint.bench.update.peak_resident", rise)
    assert update_peak(TINY, "weight", "gsp") == 2.0
    assert asked == ["frozen", None]
    (row,) = update_cost(TINY, "row", ["l0"], ONCE, resident=True)
    assert row.figures[PEAK] == 2.0
    monkeypatch.setattr("setpoint.bench.update.peak_resident", partial(lambda *_: None))
    assert update_peak(TINY, "weight", "gsp") is None
