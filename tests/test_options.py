"""Options of every kind are read as plain numbers or refused by a sentence that names them."""

import dataclasses
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

import setpoint
from setpoint import Schedule, Target
from setpoint.methods import (
    ConstrainedL0,
    DeepHoyer,
    GroupedSparseProjection,
    GroupSparseEnvelope,
    Magnitude,
    RigL,
    SparseEvolutionaryTraining,
    Static,
)
from setpoint.options import plain
from setpoint.suggestions import did_you_mean

from nets import build

METHODS = (
    Magnitude,
    GroupedSparseProjection,
    GroupSparseEnvelope,
    DeepHoyer,
    ConstrainedL0,
    Static,
    SparseEvolutionaryTraining,
    RigL,
)
NAN, INF = float("nan"), float("inf")
NO_NUMBER = ("x", "0.5", "", b"x", [], [1], {}, (), 1j, int, Target, np.array([0.5]), torch.tensor([0.5]), object())
NASTY = (*NO_NUMBER, NAN, INF, -INF, -1, -0.5, 10**400, True, Decimal("NaN"), torch.tensor(True))


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (np.float32(0.7), 0.7),
        (np.float64(0.7), 0.7),
        (np.float16(0.5), 0.5),
        (np.int64(3), 3),
        (np.array(3), 3),
        (np.bool_(True), True),
        (torch.tensor(0.7), 0.7),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.tensor(3), 3),
        (torch.tensor(True), True),
        (torch.tensor(0.25, requires_grad=True), 0.25),
        (Decimal("0.7"), 0.7),
        (Fraction(1, 4), 0.25),
    ],
)
def test_numbers_of_other_libraries_are_read_as_they_are_written(given, read):
    assert plain(given) == read
    assert type(plain(given)) is type(read)


@pytest.mark.parametrize("value", [np.float32(0.7), torch.tensor(0.7), Decimal("0.7"), Fraction(7, 10)])
def test_a_target_of_another_library_is_the_same_target(value):
    assert Target.of(value) == Target(sparsity=0.7)
    assert repr(Target(params=value)) == repr(Target(params=0.7))


def test_the_nearest_name():
    assert did_you_mean("globall", ("global", "uniform")) == "; did you mean 'global'?"
    assert did_you_mean("RIGL", ("rigl", "gsp")) == "; did you mean 'rigl'?"
    assert did_you_mean("zzz", ("global", "uniform")) == did_you_mean(3, ("global",)) == ""


FIELDS = [(kind, field.name) for kind in (*METHODS, Target, Schedule) for field in dataclasses.fields(kind)]


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_nasty_values_of_every_option_are_taken_or_refused_by_name(kind, field):
    refused = []
    for value in NASTY:
        model, opt, _ = build("mlp")
        base = {"sparsity": 0.5} if kind is Target and field in ("cost", "device", "multiple_of") else {}
        name = {Target: "target", Schedule: "schedule"}.get(kind, "method")
        try:
            options = {"target": 0.5} | {name: kind(**base | {field: value})}
            setpoint.Sparsifier(model, opt, **options, steps=20)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) >= len(NO_NUMBER)
    words = {"flops": "FLOPs", "latency_ms": "milliseconds"}.get(field, field)
    assert [said for said in refused if field not in said and words not in said] == []
    assert not any("not supported between" in said for said in refused)


@pytest.mark.parametrize("option", ["target", "scope", "steps", "schedule", "floor", "method"])
@pytest.mark.parametrize("value", NO_NUMBER, ids=lambda value: type(value).__name__)
def test_values_of_another_kind_are_refused_by_name(option, value):
    model, opt, _ = build("mlp")
    with pytest.raises(ValueError, match=option):
        setpoint.Sparsifier(model, opt, **({"target": 0.5, "steps": 20} | {option: value}))
    assert not opt._optimizer_step_post_hooks


@pytest.mark.parametrize("steps", [np.int64(20), torch.tensor(20), 20])
def test_whole_numbers_of_any_library_are_steps(steps):
    model, opt, _ = build("mlp")
    timeline = setpoint.Sparsifier(model, opt, target=0.5, steps=steps, floor=np.int64(2)).timeline
    assert timeline.steps == 20
    assert type(timeline.steps) is int


def test_a_schedule_is_named_by_its_shape():
    model, opt, _ = build("mlp")
    sparsifier = setpoint.Sparsifier(model, opt, target=0.5, steps=20, schedule="linear")
    assert sparsifier.timeline.schedule == Schedule("linear")
