"""Sizes remember what they were computed from, and say when that is lost."""

import copy
import math

import numpy as np
import pytest
import torch

from setpoint.wiring.sizes import AttributeOf, Constant, Operation, Size, expression_of

HEADS = AttributeOf("attention", "heads", None, 4)


def size() -> Size:
    return Size(4, HEADS, [])


@pytest.mark.parametrize(
    ("compute", "value", "expression"),
    [
        (lambda s: s * 3, 12, Operation("*", HEADS, Constant(3))),
        (lambda s: 12 // s, 3, Operation("//", Constant(12), HEADS)),
        (lambda s: s // s, 1, Operation("//", HEADS, HEADS)),
        (lambda s: 1 - s, -3, Operation("-", Constant(1), HEADS)),
        (lambda s: sum([s, 2]), 6, Operation("+", Operation("+", Constant(0), HEADS), Constant(2))),
        (lambda s: max(1, s), 4, HEADS),
        (lambda s: math.prod((s, 2)), 8, Operation("*", Operation("*", Constant(1), HEADS), Constant(2))),
        (lambda s: 4, 4, Constant(4)),
    ],
)
def test_arithmetic_is_remembered(compute, value, expression):
    found = compute(size())
    assert found == value
    assert expression_of(found) == expression


@pytest.mark.parametrize(
    ("compute", "value"),
    [
        (math.sqrt, 2.0),
        (np.sqrt, 2.0),
        (lambda s: s**-0.5, 0.5),
        (lambda s: 2**s, 16),
        (lambda s: 2.0**s, 16.0),
        (lambda s: s / 8, 0.5),
        (lambda s: 1 / s, 0.25),
        (lambda s: s * 0.5, 2.0),
        (lambda s: 1.0 / s, 0.25),
        (math.log2, 2.0),
        (lambda s: len(range(s)), 4),
        (lambda s: 0.5 + s, 4.5),
        (lambda s: -s, -4),
        (lambda s: s >> 1, 2),
        (float, 4.0),
        (int, 4),
    ],
)
def test_other_uses_are_noted(compute, value):
    given = size()
    found = compute(given)
    assert found == value
    assert not isinstance(found, Size)
    assert given.log == [HEADS]


def test_formatting_copying_and_asking_for_more_than_one_leave_no_note():
    given = size()
    assert given != 1
    assert given > 0
    assert f"{given}" == str(given) == "4"
    assert f"{given:02d}" == "04"
    assert type(copy.deepcopy(given)) is int
    assert given % 2 == 0
    assert isinstance(given, int)
    assert torch.Size([given])[:1][0] is given
    assert not given.log


def test_comparisons_are_noted():
    given, other = size(), Size(4, AttributeOf("attention", "width", None, 4), [])
    assert given == 4
    assert given < 5
    assert {4: "four"}[given] == "four"
    assert given.log == [HEADS] * 3
    given.log.clear()
    assert given == other
    assert given.log == [Operation("==", HEADS, other.expression)]
