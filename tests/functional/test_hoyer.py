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


def gradient(function, tensor):
    tensor = tensor.detach().clone().requires_grad_()
    function(tensor).backward()
    return tensor.grad


def group_gradient(w):
    """Of Group-HS over rows, by the formula `2 (A / S) (w / N - w A / S)`; 0 in a group of zeros."""
    norms = w.norm(dim=1, keepdim=True)
    ratio = norms.sum() / norms.square().sum()
    return torch.where(norms > 0, 2 * ratio * (w / norms - w * ratio), 0.0)


def test_hoyer_square_by_hand():
    w = torch.tensor([3.0, -1.0, 0.0, 2.0], dtype=torch.float64)
    assert float(hoyer_square(w)) == pytest.approx(36 / 14)
    # (t - |w|) 2 / t^2 towards zero, with the trimming point t = 14 / 6.
    want = [-12 / 49, -24 / 49, 0.0, 6 / 49]
    assert gradient(hoyer_square, w).tolist() == pytest.approx(want, abs=1e-12)
    both_ways = torch.tensor([[3.0, 0.0], [4.0, 0.0]])
    assert float(group_hoyer_square(both_ways, 1) + group_hoyer_square(both_ways, 0)) == pytest.approx(2.96)


def test_gradients_have_their_closed_forms():
    w = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ratio = w.abs().sum() / w.square().sum()
    assert torch.allclose(gradient(hoyer_square, w), 2 * ratio * w.sign() * (1 - w.abs() * ratio), atol=1e-14)
    assert torch.allclose(gradient(lambda x: group_hoyer_square(x, 1), w), group_gradient(w), atol=1e-14)


@pytest.mark.parametrize("function", [hoyer_square, lambda x: group_hoyer_square(x, 1)])
def test_the_scale_of_a_tensor_does_not_matter(function):
    w = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    slope = gradient(function, w)
    assert float(function(7 * w)) == pytest.approx(float(function(w)), rel=1e-12)
    assert torch.allclose(gradient(function, 7 * w), slope / 7, atol=1e-14)
    assert float((slope * w).sum()) == pytest.approx(0, abs=1e-12)


def test_what_lies_below_the_trimming_point_shrinks_and_what_lies_above_grows():
    w = torch.tensor([0.1, -0.5, 2.0, -4.0, 0.0], dtype=torch.float64)
    point = float(w.square().sum() / w.abs().sum())
    outward = -gradient(hoyer_square, w) * w.sign()
    assert outward.sign().tolist() == [(-1.0 if v < point else 1.0) if v else 0.0 for v in w.abs().tolist()]


@pytest.mark.parametrize("kept", [1, 3, 10])
def test_k_equal_entries_count_as_k_and_feel_nothing(kept):
    w = torch.zeros(10, dtype=torch.float64)
    w[:kept] = -0.7
    assert float(hoyer_square(w)) == pytest.approx(kept)
    assert float(gradient(hoyer_square, w).abs().max()) == pytest.approx(0, abs=1e-12)


def test_groups_and_slices_of_zeros_feel_nothing_and_leave_the_others_alone():
    w = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    w[1] = 0.0
    slope = gradient(lambda x: group_hoyer_square(x, 1), w)
    assert torch.allclose(slope, group_gradient(w), atol=1e-14)
    assert bool((slope[1] == 0).all())
    by_row = gradient(lambda x: hoyer_square(x, 1).sum(), w)
    assert bool((by_row[1] == 0).all())
    assert torch.allclose(by_row[2], gradient(hoyer_square, w[2]))
    for function in (hoyer_square, lambda x: group_hoyer_square(x, (0, 2))):
        assert bool((gradient(function, torch.zeros(2, 3, 2)) == 0).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    w = torch.randn(300, 100, generator=torch.Generator().manual_seed(3)).to(dtype)
    value = hoyer_square(w)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(hoyer_square(w.double())), rel=1e-4)
    slope = gradient(lambda x: hoyer_square(x) + group_hoyer_square(x, 1), w)
    assert slope.dtype == dtype
    assert bool(torch.isfinite(slope).all())
