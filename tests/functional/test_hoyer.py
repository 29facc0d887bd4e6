"""Hoyer's measure and the penalties against mpmath, finite differences and their known values."""

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from setpoint.functional import group_hoyer_square, hoyer, hoyer_square

vectors = st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(vectors, st.sampled_from([1e-150, 1.0, 1e150]))
def test_hoyer_and_hoyer_square_agree_with_mpmath(values, scale):
    x = torch.tensor(values, dtype=torch.float64) * scale
    exact = [mpmath.mpf(float(v)) for v in x]
    l1, l2 = mpmath.fsum(abs(v) for v in exact), mpmath.sqrt(mpmath.fsum(v * v for v in exact))
    if l2 == 0:
        assert float(hoyer(x)) == 1.0
        assert float(hoyer_square(x)) == 0.0
        return
    root = mpmath.sqrt(len(values))
    assert float(hoyer(x)) == pytest.approx(float((root - l1 / l2) / (root - 1)), abs=1e-12)
    assert float(hoyer_square(x)) == pytest.approx(float((l1 / l2) ** 2), rel=1e-12)


def test_ends_of_the_scale():
    assert float(hoyer(torch.ones(7))) == pytest.approx(0, abs=1e-6)
    assert float(hoyer(torch.tensor([0.0, -3.0, 0.0]))) == pytest.approx(1, abs=1e-6)
    assert float(hoyer(torch.tensor([1.0, -1.0, 0.0, 0.0]))) == pytest.approx(2 - 2**0.5, abs=1e-6)
    assert float(hoyer_square(torch.ones(4, 5))) == pytest.approx(20)
    assert float(hoyer_square(torch.tensor([0.0, 2.0]))) == 1.0


def test_one_value_a_vector_along_any_dims():
    x = torch.randn(3, 4, 5)
    assert hoyer(x, (1, 2)).shape == (3,)
    assert torch.allclose(hoyer(x, -1)[1, 2], hoyer(x[1, 2]))
    assert torch.allclose(hoyer_square(x, 0)[1, 1], hoyer_square(x[:, 1, 1]))


def test_weights():
    x = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    assert torch.allclose(hoyer(x), hoyer(x, weights=torch.ones(3)))
    w = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    want = (w.norm() - (w * x.abs()).sum() / x.norm()) / (w.norm() - w.min())
    assert torch.allclose(hoyer(x, weights=w), want)


def test_group_hoyer_square_counts_groups():
    w = torch.zeros(6, 4, 3, 3)
    w[[1, 4]] = torch.randn(1, 4, 3, 3)
    assert float(group_hoyer_square(w, (1, 2, 3))) == pytest.approx(2, rel=1e-5)
    assert float(group_hoyer_square(torch.ones(6, 4, 3, 3), (0, 2, 3))) == pytest.approx(4, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("function", [hoyer, hoyer_square, lambda x: group_hoyer_square(x, 1)])
def test_gradients(function, scale):
    x = (torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * scale).requires_grad_()
    function(x).backward()
    step = 1e-6 * scale
    for index in [(0, 0), (3, 2)]:
        moved = [x.detach().clone(), x.detach().clone()]
        moved[0][index] += step
        moved[1][index] -= step
        slope = (function(moved[0]) - function(moved[1])) / (2 * step)
        assert float(x.grad[index]) == pytest.approx(float(slope), rel=1e-5, abs=1e-8 / scale)


@pytest.mark.parametrize("function", [hoyer, hoyer_square, lambda x: group_hoyer_square(x, 1)])
def test_zeros_have_finite_value_and_gradient(function):
    for x in (torch.zeros(3, 4), torch.tensor([[1.0, 2.0], [0.0, 0.0]])):
        x = x.requires_grad_()
        value = function(x)
        value.backward()
        assert bool(torch.isfinite(value))
        assert bool(torch.isfinite(x.grad).all())


def test_single_precision_scales():
    for scale in (1e-30, 1e30):
        assert float(hoyer_square(torch.full((8,), scale))) == pytest.approx(8, rel=1e-5)


def test_vectors_of_one_entry_have_no_measure():
    with pytest.raises(ValueError, match="at least 2"):
        hoyer(torch.ones(3, 1), dim=1)
