"""Hard-concrete gates against their closed-form distribution, mpmath, autograd and the published constants."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from setpoint.functional import hard_concrete, hard_concrete_open
from setpoint.functional.hard_concrete import TEMPERATURE, hard_concrete_slope

# log alpha, the probability that the gate is open, and the median.
KNOWN = [
    (-4.605, 0.0471, 0.0),
    (-1.5986, 0.5000, 0.0),
    (0.0, 0.8318, 0.5),
    (0.8473, 0.9203, 0.837),
    (1.386, 0.9519, 0.967),
    (1.5987, 0.9607, 1.0),
    (2.197, 0.9780, 1.0),
    (2.944, 0.9895, 1.0),
    (4.605, 0.9980, 1.0),
]
FUNCTIONS = [hard_concrete, hard_concrete_open, hard_concrete_slope]
numbers = st.floats(-8, 8)


@pytest.mark.parametrize(("log_alpha", "opened", "median"), KNOWN)
def test_known_values(log_alpha, opened, median):
    a = torch.tensor(log_alpha, dtype=torch.float64)
    assert float(hard_concrete_open(a)) == pytest.approx(opened, abs=6e-5)
    assert float(hard_concrete(a)) == pytest.approx(median, abs=6e-4)


@settings(max_examples=60, deadline=None)
@given(numbers, st.floats(1e-6, 1 - 1e-6), st.sampled_from([0.2, TEMPERATURE, 1.5]))
def test_samples_and_probabilities_agree_with_mpmath(log_alpha, uniform, temperature):
    a, u = (torch.tensor(v, dtype=torch.float64) for v in (log_alpha, uniform))
    sigmoid = lambda x: 1 / (1 + mpmath.exp(-x))  # noqa: E731
    noise = mpmath.log(mpmath.mpf(uniform) / (1 - mpmath.mpf(uniform)))
    stretched = mpmath.mpf("1.2") * sigmoid((noise + log_alpha) / temperature) - mpmath.mpf("0.1")
    assert float(hard_concrete(a, u, temperature)) == pytest.approx(float(min(max(stretched, 0), 1)), abs=1e-13)
    opened = sigmoid(log_alpha - temperature * mpmath.log(mpmath.mpf(1) / 11))
    assert float(hard_concrete_open(a, temperature)) == pytest.approx(float(opened), abs=1e-13)


@pytest.mark.parametrize("temperature", [0.3, TEMPERATURE])
@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 1.5])
def test_samples_follow_the_closed_form_distribution(log_alpha, temperature):
    n = 40_000
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    z = hard_concrete(torch.full((n,), log_alpha, dtype=torch.float64), uniform, temperature)
    for point in (0.0, 0.25, 0.5, 0.9):
        s = (point + 0.1) / 1.2
        below = 1 / (1 + math.exp(log_alpha - temperature * math.log(s / (1 - s))))
        assert float((z <= point).double().mean()) == pytest.approx(below, abs=2 / n)
    opened = float(hard_concrete_open(torch.tensor(log_alpha, dtype=torch.float64), temperature))
    assert float((z > 0).double().mean()) == pytest.approx(opened, abs=2 / n)


@settings(max_examples=100, deadline=None)
@given(numbers, st.floats(0.05, 2.0))
def test_the_median_is_open_exactly_where_the_probability_is_above_one_half(log_alpha, temperature):
    threshold = -temperature * math.log(11)
    for a in (log_alpha, threshold - 1e-9, threshold + 1e-9):
        location = torch.tensor(a, dtype=torch.float64)
        opened = bool(hard_concrete(location, temperature=temperature) > 0)
        assert opened == bool(hard_concrete_open(location, temperature) > 0.5) == (a > threshold)


def test_the_median_is_the_sample_of_one_half():
    a = torch.linspace(-5, 5, 41)
    assert torch.equal(hard_concrete(a), hard_concrete(a, torch.full_like(a, 0.5)))


@pytest.mark.parametrize("temperature", [0.2, TEMPERATURE])
def test_the_slope_is_autograds_and_that_of_finite_differences(temperature):
    generator = torch.Generator().manual_seed(0)
    a = (3 * torch.randn(500, dtype=torch.float64, generator=generator)).requires_grad_()
    uniform = torch.rand(500, dtype=torch.float64, generator=generator)
    z = hard_concrete(a, uniform, temperature)
    z.sum().backward()
    slope = hard_concrete_slope(z.detach(), temperature)
    assert torch.allclose(slope, a.grad, rtol=1e-10, atol=1e-13)
    near = [hard_concrete(a.detach() + h, uniform, temperature) for h in (-1e-6, 1e-6)]
    assert torch.allclose(slope, (near[1] - near[0]) / 2e-6, atol=1e-5)
    clipped = (z == 0) | (z == 1)
    assert 0 < int(clipped.sum()) < 500
    assert bool((slope[clipped] == 0).all())
    assert bool((slope[~clipped] > 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_uniform_numbers_at_the_ends_give_gates_that_are_quite_shut_and_open(dtype):
    a = torch.linspace(-6, 6, 7, dtype=dtype).requires_grad_()
    for end in (0.0, 1.0):
        z = hard_concrete(a, torch.full((7,), end))
        assert bool((z == end).all())
        (grad,) = torch.autograd.grad(z.sum(), a)
        assert bool((grad == 0).all())
        assert bool((hard_concrete_slope(z) == 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype):
    a = torch.linspace(-4, 4, 33).to(dtype)
    uniform = torch.rand(33, generator=torch.Generator().manual_seed(0))
    for function, args in [(hard_concrete, (uniform,)), (hard_concrete, ()), (hard_concrete_open, ())]:
        found = function(a, *args)
        assert found.dtype == torch.float32
        assert torch.equal(found, function(a.float(), *args))
    z = torch.linspace(0, 1, 33).to(dtype)
    assert torch.equal(hard_concrete_slope(z), hard_concrete_slope(z.float()))


def test_single_precision_stays_and_shapes_are_kept():
    a = torch.zeros(2, 1, 3)
    assert all(f(a).dtype == torch.float32 and f(a).shape == a.shape for f in FUNCTIONS)
    # A uniform number that is one only in single precision opens the gate; it gives no NaN.
    assert bool((hard_concrete(a, torch.full((2, 1, 3), 1 - 1e-12, dtype=torch.float64)) == 1).all())


@pytest.mark.parametrize("function", [hard_concrete_open, hard_concrete_slope, lambda a, t: hard_concrete(a, None, t)])
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_out_of_range_is_refused(function, temperature):
    with pytest.raises(ValueError, match=f"temperature={temperature} must be a number above 0"):
        function(torch.zeros(3), temperature)
