import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from setpoint.functional.bits import Mask, Masks, pack_bits, unpack_bits


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


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4), (0,), (64, 33)])
def test_a_mask_holds_what_was_put_into_it(shape):
    entries = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    mask = Mask.of(entries)
    assert torch.equal(mask.tensor(), entries)
    assert int(mask.count()) == int(entries.sum())
    assert torch.equal(Mask.unpacked(mask.packed, shape).tensor(), entries)
    assert torch.equal((mask | Mask.of(~entries)).tensor(), torch.ones(shape, dtype=torch.bool))
    for begin, end in ((0, entries.numel()), (1, entries.numel()), (3, min(11, entries.numel()))):
        assert torch.equal(mask.piece(begin, end), entries.flatten()[begin:end])


def test_a_mask_is_written_in_pieces():
    entries = torch.rand(101, generator=torch.Generator().manual_seed(1)) < 0.3
    mask = Mask((101,))
    for begin in (96, 0, 40):
        mask.put(begin, entries[begin : {0: 40, 40: 96, 96: 101}[begin]])
    assert torch.equal(mask.tensor(), entries)
    mask.tensor().fill_(True)
    assert torch.equal(mask.tensor(), entries)


def test_bits_beyond_the_last_entry_are_not_counted():
    mask = Mask.unpacked(torch.tensor([255], dtype=torch.uint8), (3,))
    assert int(mask.count()) == 3
    assert mask.packed.tolist() == [7]


def test_masks_are_unpacked_when_they_are_asked_for():
    entries = [torch.rand(4, 5) < 0.5, torch.rand(3) < 0.5]
    masks = Masks([Mask.of(e) for e in entries])
    assert all(torch.equal(a, b) for a, b in zip(masks, entries, strict=True))
    assert torch.equal(masks[1:][0], entries[1])
