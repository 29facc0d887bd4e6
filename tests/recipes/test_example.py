"""Examples in words."""

import pytest
import torch

from setpoint.recipes.example import Example


@pytest.mark.parametrize(
    ("text", "words", "shapes"),
    [
        ("3x32x32", "3x32x32", [(3, 32, 32)]),
        ("[1, 8, 8]", "1x8x8", [(1, 8, 8)]),
        ("128:int64", "128:int64", [(128,)]),
        ("5:int64, 5x2:bfloat16", "5:int64,5x2:bfloat16", [(5,), (5, 2)]),
    ],
)
def test_words_and_tensors(text, words, shapes):
    example = Example.parse(text)
    assert str(example) == words
    assert Example.parse(words) == example
    assert [tuple(t.shape) for t in example.one()] == shapes
    assert [tuple(t.shape) for t in example.batch(3)] == [(3, *shape) for shape in shapes]
    for tensor, (_, dtype) in zip(example.batch(50), example.tensors, strict=True):
        assert tensor.dtype == dtype
        assert len(set(tensor.flatten().tolist())) >= 2
        if not dtype.is_floating_point:
            assert set(tensor.flatten().tolist()) == {0, 1}
    assert all(torch.equal(a, b) for a, b in zip(example.batch(2), example.batch(2), strict=True))


@pytest.mark.parametrize("text", ["", "large", "3x", "3x0", "3:os", "3:int99", "[]", "3,,3", "-3"])
def test_what_is_no_shape(text):
    with pytest.raises(ValueError, match="is no shape such as 3x32x32"):
        Example.parse(text)
