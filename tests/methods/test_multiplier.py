"""The multiplier's update: its documented values, gradient ascent as a library does it, and what must not happen."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from setpoint.methods.multiplier import ProportionalIntegral

CPU = torch.device("cpu")
ERRORS = [0.9, 0.8, 0.7, 0.6]


def path(errors, **options):
    controller = ProportionalIntegral(**options)
    memory = controller.start(CPU)
    return [float(controller.step(memory, torch.tensor(e, dtype=torch.float64))) for e in errors]


def test_documented_values():
    # Step size 0.1, gains 10 and 1: the first step has no change to go by, later ones fall with the error.
    found = path(ERRORS, proportional=1.0, integral=0.1)
    assert found == pytest.approx([0.09, 0.07, 0.04, 0.00], abs=1e-12)


def library(errors, optimizer):
    """The multiplier that cooper-optim finds for the same errors."""
    cooper = pytest.importorskip("cooper")
    multiplier = cooper.multipliers.DenseMultiplier(num_constraints=1)
    constraint = cooper.Constraint(cooper.ConstraintType.INEQUALITY, multiplier=multiplier)
    dual = optimizer(multiplier.parameters())
    found = []
    for e in errors:
        dual.zero_grad()
        state = cooper.ConstraintState(violation=torch.tensor([e]))
        constraint.compute_contribution_to_lagrangian(state, "dual").lagrangian_contribution.backward()
        dual.step()
        multiplier.post_step_()
        found.append(float(multiplier.weight.detach()))
    return found


def nupi(proportional, integral, lr):
    def make(parameters):
        from cooper.optim import nuPI

        gains = {"Kp": torch.tensor([proportional]), "Ki": torch.tensor([integral])}
        return nuPI(parameters, lr=lr, maximize=True, **gains)

    return make


def test_without_a_proportional_part_it_is_the_librarys_gradient_ascent():
    errors = [0.5, 0.25, -2.0, -1.0, 0.125, 0.75, -0.5, 1.0]
    want = library(errors, lambda p: torch.optim.SGD(p, lr=0.5, maximize=True))
    assert want == path(errors, proportional=0.0, integral=0.5)
    assert 0.0 in want, "the projection is a part of it"


def test_the_librarys_leap_at_the_second_step_is_not_taken():
    found, theirs = path(ERRORS, proportional=1.0, integral=0.1), library(ERRORS, nupi(10.0, 1.0, 0.1))
    assert theirs[0] == pytest.approx(found[0])
    assert max(found) == found[0]
    if theirs[1] > 0.5:  # as in 1.0.1, which takes the first error to be a change from zero
        assert theirs[1] - found[1] == pytest.approx(1.0 * ERRORS[0], abs=1e-6)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.floats(-1, 1) | st.just(math.nan), max_size=20),
    st.floats(0, 20),
    st.floats(0.01, 2),
    st.booleans(),
)
def test_it_is_never_negative_and_always_finite(errors, proportional, integral, restart):
    found = path(errors, proportional=proportional, integral=integral, restart=restart)
    assert all(math.isfinite(v) and v >= 0 for v in found)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("restart", [False, True])
def test_a_violation_that_is_not_finite_leaves_it_and_what_it_remembers(bad, restart):
    options = {"proportional": 1.0, "integral": 0.1, "restart": restart}
    found = path([0.5, bad, 0.6], **options)
    assert found[1] == found[0]
    assert found[2] == path([0.5, 0.6], **options)[1]
    assert path([bad, 0.5], **options) == [0.0, *path([0.5], **options)]


def test_a_restart_is_followed_by_no_kick():
    errors = [0.5, 0.5, -0.1, 0.1]
    kept = path(errors, proportional=5.0, integral=1.0)
    found = path(errors, proportional=5.0, integral=1.0, restart=True)
    assert found[:3] == [0.5, 1.0, 0.0]
    assert kept[:2] == found[:2]
    # As much as the change of the violation and the violation itself, as if it had begun there.
    assert found[3] == pytest.approx(0.1 + 5.0 * 0.2)
    steady = path([0.5, -0.1, -0.1, -0.1], proportional=5.0, integral=1.0, restart=True)
    assert steady[1:] == [0.0, 0.0, 0.0]


def test_a_constraint_that_just_holds_is_no_reason_to_restart():
    assert path([0.5, 0.0], proportional=0.0, integral=1.0, restart=True) == [0.5, 0.5]


def test_it_goes_on_from_what_it_remembers():
    controller = ProportionalIntegral(2.0, 0.1)
    memory = controller.start(CPU)
    controller.step(memory, torch.tensor(0.3))
    copy = {key: value.clone() for key, value in memory.items()}
    assert float(controller.step(memory, torch.tensor(0.4))) == float(controller.step(copy, torch.tensor(0.4)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"proportional": -1.0, "integral": 1.0}, "proportional=-1.0 must be a number of at least 0"),
        ({"proportional": math.inf, "integral": 1.0}, "proportional=inf"),
        ({"proportional": math.nan, "integral": 1.0}, "proportional=nan"),
        ({"proportional": 1.0, "integral": 0.0}, "integral=0.0 must be a number above 0"),
        ({"proportional": 1.0, "integral": math.nan}, "integral=nan"),
        ({"proportional": 1.0, "integral": math.inf}, "integral=inf"),
    ],
)
def test_gains_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ProportionalIntegral(**options)
