"""Steps and memory of training: in the right phase, with and without updates, and bytes that are exact."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from setpoint.bench.memory import projection_memory, step_memory
from setpoint.bench.peaks import Meter
from setpoint.bench.resident import peak_resident
from setpoint.bench.step import step_overhead
from setpoint.bench.training import GPT, RESNET20, Training, default_interval
from setpoint.bench.work import Pace
from setpoint.methods import method_names

CPU = torch.device("cpu")
ONCE = Pace(repeats=1, seconds=1e-3, warm_up=0)
SMALL = {
    "resnet20": replace(RESNET20, width=0.25, batch=2),
    "gpt": replace(GPT, width=0.125, batch=2, shape=(8,), classes=16),
}


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("updates", [False, True])
def test_trainings_are_in_the_middle(method, updates):
    training = Training(SMALL["resnet20"], method, device=CPU, updates=updates, turns=6)
    sparsifier = training.sparsifier
    line = sparsifier.timeline
    done = len(sparsifier.history)
    assert sparsifier.phase == "sparsify"
    assert 0.4 < line.progress(sparsifier.step) < 0.65
    if method != "static":
        assert sparsifier.history[-1]["step"] >= sparsifier.step - 1
        assert done > 1 or not sparsifier.method.always_sparse
    for _ in range(6):
        training.backward()
        training.step()
    assert sparsifier.phase == "sparsify"
    expected = 6 if updates and method != "static" else 0
    assert len(sparsifier.history) - done == expected
    training.freeze()
    assert sparsifier.report().exact


def test_default_intervals():
    assert default_interval("gsp", 1000) == 4
    assert default_interval("static", 1000) is None
    assert default_interval("rigl", 20_000) == 150


@pytest.mark.parametrize(("name", "unit"), [("resnet20", "weight"), ("gpt", "neuron")])
@pytest.mark.parametrize("whole", [True, False])
def test_steps(name, unit, whole):
    methods = ["gsp", "l0", "static"]
    found = step_overhead(SMALL[name], unit, methods, CPU, ONCE, steps=1000, whole=whole)
    assert [row.work for row in found] == methods
    assert [row.note for row in found] == ["an update every 4 steps", "an update every 4 steps", "no updates"]
    for row, method in zip(found, methods):
        assert row.against == "dense step"
        assert unit in row.case
        figures = dict(row.figures)
        mean = figures.pop("as timed whole", None)
        assert (mean is not None) == (whole or method == "l0")
        assert set(figures) == {"between", "frozen"} | ({"with an update"} if method != "static" else set())
        share = 0.25 * (figures["with an update"] - figures["between"]) if method != "static" else 0.0
        assert row.ratio == pytest.approx(figures["between"] + share)
        if method == "l0":
            assert mean == pytest.approx(row.ratio)


def test_peaks_are_exact():
    with Meter(CPU) as meter:
        kept = torch.zeros(1000)
        with meter.window("work"):
            first = torch.ones(500)
            second = first + 1
            del first
        with meter.window("work"):
            pass
        with meter.window("rest"):
            pass
    assert 4 * 2000 <= meter.peaks["work"] < 4 * 2000 + 200
    assert 4 * 1500 <= meter.peaks["rest"] < 4 * 1500 + 200
    del kept, second


@pytest.mark.parametrize("name", ["resnet20", "gpt"])
def test_memory_of_methods(name):
    task = SMALL[name]
    static, magnitude = step_memory(task, "weight", ["static", "magnitude"], CPU)
    model = Training(task, None, device=CPU).model
    chosen = Training(task, "static", device=CPU).sparsifier
    assert chosen is not None
    entries = sum(mask.numel() for mask in chosen.masks.values()) / sum(p.numel() for p in model.parameters())
    # One bit an entry says what is gone, another which units are kept.
    assert static.figures["kept between steps"] == pytest.approx(2 / 32 * entries, rel=0.1)
    assert magnitude.figures["kept between steps"] == pytest.approx(1 / 32 * entries, rel=0.1)
    for row in (static, magnitude):
        assert row.against == "the parameters"
        assert row.ms is None
        assert row.figures["in the optimizer's step"] >= row.figures["kept between steps"] - 1e-9


def test_memory_of_projections():
    found = {row.work: row for row in projection_memory(CPU, scale=1e-3)}
    assert set(found) == {"project_gsp, in place", "project_gsp", "project_budget", "prox_group_envelope"}
    # At the least the answer itself: new weights, a byte an entry, or a factor a group.
    for name, least in (("project_gsp", 1.0), ("project_budget", 0.25), ("prox_group_envelope", 1.0)):
        assert found[name].ratio >= least
        assert found[name].figures == {}


def _ones(count, scale):
    return partial(torch.ones, int(scale * count))


def test_resident_set_of_another_process():
    found = peak_resident(partial(_ones, 20_000_000))
    if found is None:
        pytest.skip("this system does not tell")
    assert 0.9 * 8e7 < found < 1.5 * 8e7
