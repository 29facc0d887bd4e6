"""How tensors lie in memory comes back with the model, exactly."""

import itertools

import pytest
import torch
from torch import nn

import setpoint
from setpoint.deploy.layouts import is_dense, place, usual_strides
from setpoint.deploy.words import words_dtype

DTYPES = [value for value in vars(torch).values() if isinstance(value, torch.dtype)]
SHAPES = [(), (1,), (3, 1, 3, 3), (1, 3, 3, 3), (4, 2, 1, 1), (1, 1, 1, 1), (2, 3, 4, 5), (2, 1, 3, 4, 1), (0, 3, 2, 2)]


def held(tensor):
    module = nn.Module()
    module.register_buffer("x", tensor)
    return module


def again(module, folder):
    return setpoint.load_model(setpoint.save(module, folder / "x.safetensors"))


def assert_same(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.stride() == expected.stride()
    words = torch.complex128 if found.itemsize > 8 else words_dtype(found.dtype)
    assert torch.equal(found.view(words), expected.view(words))


@pytest.mark.parametrize("channels", [(1, 1), (1, 4), (4, 1), (3, 5)])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("kind", "memory_format"), [(nn.Conv2d, "channels_last"), (nn.Conv3d, "channels_last_3d")])
def test_convolutions_with_channels_last(kind, memory_format, channels, kernel, tmp_path):
    model = kind(*channels, kernel).to(memory_format=getattr(torch, memory_format))
    assert_same(again(model, tmp_path).weight.detach(), model.weight.detach())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_order_of_the_axes(shape, tmp_path):
    for order in itertools.islice(itertools.permutations(range(len(shape))), 0, None, 7):
        tensor = (
            torch.rand(shape).permute(order).contiguous().permute([order.index(axis) for axis in range(len(shape))])
        )
        assert_same(again(held(tensor), tmp_path).x, tensor)


@pytest.mark.parametrize("strides", [(1, 100, 1), (7, 0, 1), (3, 2**40, 1), (3, 1, 1)])
def test_strides_that_mean_nothing(strides, tmp_path):
    tensor = torch.rand(6).as_strided((2, 1, 3), (3, *strides[1:]))
    assert_same(again(held(tensor), tmp_path).x, tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.filterwarnings("ignore")
def test_every_dtype_that_is_saved(dtype, tmp_path):
    entries = torch.randint(0, 2, (3 * 2 * 2 * dtype.itemsize,), dtype=torch.uint8)
    tensor = entries.view(dtype if dtype.itemsize > 8 else words_dtype(dtype))
    tensor = tensor.reshape(3, 2, 2, 1).permute(0, 3, 1, 2)
    try:
        tensor = tensor.view(dtype)
        path = setpoint.save(held(tensor), tmp_path / "x.safetensors")
    except (RuntimeError, ValueError, NotImplementedError):
        pytest.skip("not a dtype that is saved")
    assert_same(setpoint.load_model(path).x, tensor)


def test_what_shares_memory_shares_it_again(tmp_path):
    first, second = nn.Conv2d(1, 3, 3).to(memory_format=torch.channels_last), nn.Conv2d(1, 3, 3)
    second.weight = nn.Parameter(first.weight.detach(), requires_grad=False)
    found = again(nn.Sequential(first, second), tmp_path)
    assert found[0].weight.data_ptr() == found[1].weight.data_ptr()
    assert found[0].weight is not found[1].weight
    assert found[1].weight.stride() == first.weight.stride()


def test_gaps_between_entries_are_left_out(tmp_path):
    tensor = torch.rand(4, 6)[:, ::2]
    found = again(held(tensor), tmp_path).x
    assert torch.equal(found, tensor)
    assert found.stride() == (3, 1)


def test_strides_in_memory():
    assert usual_strides((2, 3, 4)) == (12, 4, 1)
    assert is_dense((2, 3), (1, 2))
    assert is_dense((2, 1), (1, 99))
    assert not is_dense((2, 3), (4, 1))
    assert not is_dense((2, 3), (0, 1))
    tensor = torch.arange(6).reshape(2, 3)
    assert torch.equal(place(tensor, (1, 2)), tensor)
    assert place(tensor, (1, 2)).stride() == (1, 2)
    for strides in ((1, 1), (3,), (3, 1, 1), (-3, 1), (6, 2)):
        with pytest.raises(ValueError, match=r"no dense strides for the shape \[2, 3\]"):
            place(tensor, strides)
