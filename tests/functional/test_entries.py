"""Entries set to zero and multiplied in place, beside torch's own operators."""

import pytest
import torch

from pretend import DEVICE, pretended_device
from setpoint.functional import entries as module
from setpoint.functional.bits import Mask
from setpoint.functional.entries import count_nonzero, multiply_entries, zero_entries, zero_finite_entries


@pytest.fixture(params=[7, 200_003])
def tensor(request):
    return torch.randn(request.param, generator=torch.Generator().manual_seed(0))


def some(tensor):
    return torch.rand(tensor.shape, generator=torch.Generator().manual_seed(1)) < 0.6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("zero", [zero_entries, zero_finite_entries])
def test_zeros_are_positive_whatever_was_there(tensor, dtype, zero):
    if zero is zero_finite_entries and dtype is torch.bfloat16:
        pytest.skip("of what can be written in place only")
    tensor = tensor.to(dtype)
    where = some(tensor)
    tensor[where] = -0.0
    asked = tensor.masked_fill(where, 0.0)
    zero(tensor, Mask.of(where))
    assert torch.equal(tensor, asked)
    assert not bool(torch.signbit(tensor[where]).any())


def test_what_is_not_finite_becomes_zero(tensor):
    where = some(tensor)
    tensor[where] = float("nan")
    zero_entries(tensor, Mask.of(where))
    assert bool((tensor[where] == 0).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_told(tensor, bad):
    where = some(tensor)
    assert zero_finite_entries(tensor.clone(), Mask.of(where))
    assert zero_finite_entries(torch.full_like(tensor, 3e38), Mask.of(where))
    for place in (int(where.int().argmax()), int((~where).int().argmax())):
        spoiled = tensor.clone()
        spoiled[place] = bad
        assert not zero_finite_entries(spoiled, Mask.of(where))


def test_products_and_counts(tensor):
    where = some(tensor)
    asked = tensor * where
    version = tensor._version
    multiply_entries(tensor, where)
    assert torch.equal(tensor, asked)
    assert tensor._version > version
    assert int(count_nonzero(tensor)) == int(count_nonzero(where)) == int(where.sum())


def test_sums_of_columns_side_by_side():
    stacks = torch.randn(3, 150, 70)
    assert torch.allclose(module.squares_across(stacks), stacks.double().square().sum(1), rtol=1e-6)


def test_a_mask_of_another_device_is_brought_over(tensor):
    with pretended_device():
        where = some(tensor)
        asked = tensor.masked_fill(where, 0.0)
        zero_entries(tensor, Mask.of(where.to(DEVICE)))
    assert torch.equal(tensor, asked)
