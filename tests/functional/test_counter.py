"""Numbers by a counter: uniform, independent, and the same in whatever way they are drawn."""

import numpy as np
import pytest
import torch

from setpoint.functional import counter


def test_they_are_the_same_in_pieces_and_on_other_devices():
    key = counter.key_of(3, 40, "conv1.weight")
    whole = counter.uniform_array(key, 0, 10_000)
    parts = [counter.uniform_array(key, a, b) for a, b in ((0, 1), (1, 4097), (4097, 10_000))]
    assert np.array_equal(whole, np.concatenate(parts))
    eager = np.empty(10_000, np.float32)
    counter._fill_eager(np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32), np.uint32(0), eager)
    assert np.array_equal(whole, eager)
    x = torch.arange(10_000)
    torches = ((counter._scrambled(x, counter._low(key, x >> 32), key >> 32) >> 8) + 1).float() * 2.0**-24
    assert np.array_equal(whole, torches.numpy())


def test_more_places_than_32_bits_count():
    key, edge = counter.key_of(0), 1 << 32
    across = counter.uniform_array(key, edge - 5, edge + 5)
    x = torch.arange(edge - 5, edge + 5)
    torches = ((counter._scrambled(x, counter._low(key, x >> 32), key >> 32) >> 8) + 1).float() * 2.0**-24
    assert np.array_equal(across, torches.numpy())
    assert not np.array_equal(across[5:], counter.uniform_array(key, 0, 5))


@pytest.mark.parametrize("name", ["a", "b"])
def test_they_are_uniform_and_independent(name):
    n = 1 << 20
    x = counter.uniform_array(counter.key_of(name), 0, n).astype(np.float64)
    assert x.min() > 0.0
    assert x.max() <= 1.0
    counts = np.bincount((x * 256).astype(int).clip(0, 255), minlength=256)
    # Chi squared of 255 degrees of freedom: mean 255, deviation 22.6.
    assert abs(float(((counts - n / 256) ** 2).sum() / (n / 256)) - 255) < 5 * 22.6
    y = counter.uniform_array(counter.key_of(name, 1), 0, n).astype(np.float64)
    for lag in (1, 2, 64, 2048):
        assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) < 5 / np.sqrt(n)
        assert abs(np.corrcoef(x[:-lag], y[lag:])[0, 1]) < 5 / np.sqrt(n)


def test_no_sequence_is_a_part_of_another():
    x, y = (set(counter.uniform_array(counter.key_of(k), 0, 1 << 16).tolist()) for k in range(2))
    # Of 2^16 numbers out of 2^24, 256 are expected to be in both.
    assert len(x & y) < 400
