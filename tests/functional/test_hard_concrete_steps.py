"""Draws and steps of gates by the million: their distribution, and that kernels and eager operators give the same."""

import importlib.util
import math

import pytest
import torch

from setpoint.functional import hard_concrete, hard_concrete_open
from setpoint.functional import hard_concrete_steps as steps
from setpoint.functional.hard_concrete import hard_concrete_slope
from setpoint.functional.hard_concrete_steps import Descent, Key, Slopes, compiled_slopes, draw, together

KEY = Key.of(0, 1, "layer")
COUNT = (1 << 18) + 77
compiled = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="without numba there are no kernels")


def locations(count=COUNT, seed=0):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) * 10 - 6


def felt(count=COUNT):
    """Weights, gradients, gates and log alpha."""
    generator = torch.Generator().manual_seed(1)
    weight, grad = (torch.randn(count, generator=generator) for _ in range(2))
    grad[:4] = torch.tensor([math.nan, math.inf, -math.inf, 3e38])
    weight[3] = 100.0
    alpha = locations(count)
    return weight, grad * 1e-3, draw(alpha, 0, KEY), alpha


def slopes_of(weight, grad, gates):
    slopes = torch.where(gates > 0, grad * weight / gates, 0.0)
    return Slopes(slopes.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0), gates)


def moments(alpha):
    return alpha.clone(), *(torch.zeros_like(alpha, dtype=torch.bfloat16) for _ in range(2))


def step(key=KEY, rate=0.07, correction=7.3):
    unit, factor = (torch.tensor(n, dtype=torch.float64) for n in (2.0**-9, 1.3))
    return Descent(unit, factor, rate, correction, key)


@pytest.mark.parametrize("log_alpha", [-3.0, -1.0, 0.5, 3.0])
def test_draws_follow_the_distribution_of_the_gates(log_alpha):
    n = 200_000
    z = draw(torch.full((n,), log_alpha), 0, KEY)
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    want = hard_concrete(torch.full((n,), log_alpha, dtype=torch.float64), uniform)
    assert float((z.double().sort().values - want).abs().mean()) < 3e-3
    assert float((z > 0).float().mean()) == pytest.approx(float(hard_concrete_open(torch.tensor(log_alpha))), abs=4e-3)


def test_bits_are_even_and_neither_places_nor_keys_are_alike():
    n = 100_000
    bits = steps._bits(0, n, KEY, torch.device("cpu"))
    each = torch.stack([(bits >> i) & 1 for i in range(32)]).double()
    assert float((each.mean(1) - 0.5).abs().max()) < 0.01
    assert float((torch.corrcoef(each) - torch.eye(32)).abs().max()) < 0.02
    for other in (Key.of(0, 2, "layer"), Key.of(1, 1, "layer"), Key.of(0, 1, "other")):
        found = steps._bits(0, n, other, torch.device("cpu"))
        for shift in (0, 1, 64):
            pair = torch.stack([bits[shift:].double(), found[: n - shift].double()])
            assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.015


def test_a_draw_depends_on_the_place_alone_and_not_on_how_all_are_cut():
    alpha = locations()
    whole = draw(alpha, 0, KEY)
    for begin, end in [(0, 1000), (17, 4000), (1 << 17, COUNT)]:
        assert torch.equal(draw(alpha[begin:end].clone(), begin, KEY), whole[begin:end])


def test_functions_of_log_alpha_are_those_in_closed_form():
    alpha = torch.linspace(-6, 4, 10_001)
    assert torch.allclose(steps._shut_odds(alpha), torch.exp(-alpha), rtol=2e-6)
    p = hard_concrete_open(alpha)
    assert torch.allclose(steps._openness(alpha), p * (1 - p), atol=1e-6)
    for far in (-1e9, 1e9):
        assert float(steps._openness(torch.tensor([far]))) < 1e-15


@compiled
def test_kernels_draw_the_same_bits():
    alpha = locations()
    eager = torch.cat([steps._drawn(alpha[a:b], 5 + a, KEY) for a, b in steps.pieces(alpha)])
    assert torch.equal(draw(alpha, 5, KEY), eager)


@compiled
def test_kernels_take_the_same_steps():
    weight, grad, gates, alpha = felt()
    fast, slow = compiled_slopes(weight, grad, gates, alpha), slopes_of(weight, grad, gates)
    assert fast is not None
    one, other = fast.survey(), slow.survey()
    assert float(one.peak) == float(other.peak)
    assert float(one.moving) == float(other.moving)
    assert float(one.square) == pytest.approx(float(other.square), rel=1e-5)
    first, second = moments(alpha), moments(alpha)
    for number in range(3):
        at = step(Key.of("rounding", number))
        fast.descend(*first, torch.tensor(0.02), 5, at)
        slow.descend(*second, torch.tensor(0.02), 5, at)
        assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert all(bool(torch.isfinite(t).all()) for t in first)


def test_what_a_kernel_cannot_read_is_left_to_eager_operators():
    weight, grad, gates, alpha = felt()
    assert compiled_slopes(weight.double(), grad.double(), gates, alpha) is None
    assert compiled_slopes(weight[:10], grad[:10], gates[:10], alpha[:10]) is None
    turned = weight[: 1 << 18].reshape(512, 512).T
    assert compiled_slopes(turned, turned, turned, alpha[: 1 << 18]) is None


def test_a_step_is_adams_on_the_loss_and_the_charge():
    weight, grad, gates, alpha = felt(1000)
    slopes = slopes_of(weight[4:], grad[4:], gates[4:])
    alpha = alpha[4:].clamp(-5.0, 3.0)
    after, first, second = moments(alpha)
    slopes.descend(after, first, second, torch.tensor(0.5), 0, step(rate=0.05 / 0.1, correction=1 / 0.01))
    p = hard_concrete_open(alpha)
    gradient = slopes.slopes * 2.0**9 * hard_concrete_slope(gates[4:]) * 1.3 + 0.5 * p * (1 - p)
    assert torch.allclose(after, alpha - 0.05 * gradient.sign(), atol=1e-4)
    assert torch.allclose(first.float(), 0.1 * gradient, rtol=0.01)
    assert torch.allclose(second.float(), 0.01 * gradient.square(), rtol=0.01)


def test_moments_are_rounded_at_random_so_that_small_changes_add_up():
    alpha, first, second = moments(torch.zeros(20_000))
    still = Slopes(torch.zeros_like(alpha), torch.full_like(alpha, 0.5))
    second.fill_(1.0)
    for number in range(30):
        still.descend(alpha, first, second, torch.tensor(0.0), 0, step(Key.of(number)))
    assert float(second.float().mean()) == pytest.approx(0.99**30, rel=2e-3)
    assert second.float().unique().numel() > 1


@pytest.mark.parametrize("scale", [2.0**-100, 1.0, 2.0**100])
def test_surveys_of_parts_are_the_survey_of_the_whole(scale):
    generator = torch.Generator().manual_seed(2)
    slopes = torch.randn(3000, dtype=torch.float64, generator=generator) * scale
    slopes[:1000] = 0.0
    gates = torch.rand(3000, generator=generator)
    whole = Slopes(slopes, gates).survey()
    parts = together([Slopes(slopes[i : i + 1000], gates[i : i + 1000]).survey() for i in (0, 1000, 2000)])
    assert float(parts.peak) == float(whole.peak) == float(slopes.abs().max())
    assert float(parts.moving) == float(whole.moving) == 2000
    assert float(parts.square) == pytest.approx(float(whole.square), rel=1e-5)
