"""The root finder against functions whose roots are known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.functional import monotone_root

positive = st.floats(1e-300, 1e300)


@given(positive, st.booleans())
def test_smooth_root_at_any_scale(root, newton):
    def function(x):
        ratio = x / root
        return (1 - ratio) / (1 + ratio), (-2 / (1 + ratio) ** 2 / root if newton else None)

    found = monotone_root(function, 0.0, min(root * 1e6, 1e307), tolerance=1e-9)
    assert found.converged
    assert found.x == pytest.approx(root, rel=1e-8)
    assert found.lower <= found.x <= found.upper
    assert found.evaluations <= 140


@given(st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=20), st.integers(0, 20))
def test_counts_are_crossed_at_the_order_statistic(values, level):
    """How many values lie above x: a step function, crossed where the (level + 1)-th largest lies."""
    top = max(values)
    found = monotone_root(lambda x: (sum(v > x for v in values), None), 0.0, top, level=level)
    ordered = sorted(values, reverse=True)
    want = ordered[level] if level < len(ordered) else 0.0
    above = sum(v > found.upper for v in values)
    assert above <= level
    if not found.converged:  # the jump was pinned between two neighbouring numbers
        assert math.nextafter(found.lower, math.inf) == found.upper or found.lower == found.upper
        assert found.upper == pytest.approx(want, rel=1e-15, abs=5e-324)


def test_a_jump_over_the_level_is_reported():
    found = monotone_root(lambda x: (1.0 if x < 0.3 else -1.0, None), 0.0, 1.0, tolerance=1e-6)
    assert not found.converged
    assert found.upper == 0.3
    assert found.lower == math.nextafter(0.3, 0.0)


def test_newton_converges_in_few_evaluations():
    found = monotone_root(lambda x: (math.exp(-x) - 0.2, -math.exp(-x)), 0.0, 100.0, start=1.0, tolerance=1e-12)
    assert found.x == pytest.approx(-math.log(0.2), abs=1e-11)
    assert found.evaluations <= 8


def test_misleading_slopes_do_not_keep_it_from_the_root():
    found = monotone_root(lambda x: (1 - x**3, -1e-9), 0.0, 1e9, tolerance=1e-12)
    assert found.x == pytest.approx(1.0, abs=1e-11)


@pytest.mark.parametrize("bracket", [(1.0, 0.0), (-1.0, 1.0), (0.0, math.inf), (math.nan, 1.0)])
def test_brackets_that_are_none(bracket):
    with pytest.raises(ValueError, match="bracket"):
        monotone_root(lambda x: (x, None), *bracket)


def test_a_function_that_is_not_a_number():
    with pytest.raises(ValueError, match="not a number"):
        monotone_root(lambda x: (math.nan, None), 0.0, 1.0)
