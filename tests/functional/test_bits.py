import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from setpoint.functional.bits import pack_bits, unpack_bits


@st.composite
def masks(draw):
    shape = draw(st.lists(st.integers(0, 9), max_size=4))
    seed, density = draw(st.integers(0, 2**16)), draw(st.floats(0, 1))
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


@given(masks())
def test_round_trip(mask):
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == (-(-mask.numel() // 8),)
    found = unpack_bits(packed, mask.shape)
    assert found.dtype == torch.bool
    assert found.shape == mask.shape
    assert torch.equal(found, mask)


@given(masks())
def test_round_trip_of_a_view(mask):
    flipped = mask.permute(*reversed(range(mask.ndim)))[..., ::2] if mask.ndim else mask
    assert torch.equal(unpack_bits(pack_bits(flipped), flipped.shape), flipped)


def test_first_entry_is_the_lowest_bit():
    mask = torch.tensor([True, False, False, True, False, False, False, False, True])
    assert pack_bits(mask).tolist() == [9, 1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_whatever_is_not_zero_is_true(dtype):
    mask = torch.tensor([0, 2, 0, 1], dtype=dtype)
    assert pack_bits(mask).tolist() == [10]


def test_unpacked_memory_is_its_own():
    packed = pack_bits(torch.ones(8, dtype=torch.bool))
    unpack_bits(packed, (8,)).fill_(False)
    assert packed.tolist() == [255]


@given(st.integers(0, 40), st.integers(0, 9))
def test_wrong_length_is_refused(count, length):
    packed = torch.zeros(length, dtype=torch.uint8)
    if length == -(-count // 8):
        assert not unpack_bits(packed, (count,)).any()
    else:
        with pytest.raises(ValueError, match=rf"{length} bytes cannot hold the {count} bits"):
            unpack_bits(packed, (count,))
