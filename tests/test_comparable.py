"""What was asked for as plain values: the same for the same, whatever it is made of."""

import functools
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from setpoint.comparable import comparable


@dataclass(frozen=True)
class Asked:
    table: dict
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cache: list = field(default_factory=list, compare=False)


class Held:
    def __init__(self, value):
        self.value = value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


class Closed:
    def __reduce_ex__(self, protocol):
        raise TypeError("not pickled")


def power(x, y):
    return x**y


SAME = {
    "texts": lambda: "a",
    "numbers": lambda: [1, 2.5, None, True, float("inf")],
    "nan": lambda: float("nan"),
    "tensors": lambda: torch.arange(3000.0),
    "pairs": lambda: (1, {"a": {2, 1}}),
    "dataclasses": lambda: Asked({"a": torch.ones(2), 3: np.zeros(2)}, cache=[object()]),
    "objects": lambda: Held([torch.ones(2), Held(3)]),
    "slots": lambda: Slotted(3),
    "functions": lambda: power,
    "partials": lambda: functools.partial(power, y=2),
    "built in": lambda: max,
    "what is not pickled": Closed,
    "arrays of texts": lambda: np.array(["a", "b"], dtype=object),
}


@pytest.mark.parametrize("kind", SAME)
def test_the_same_is_equal_and_plain(kind):
    found = comparable(SAME[kind]())
    assert found == comparable(SAME[kind]())
    assert " at 0x" not in repr(found)

    def is_plain(value):
        inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        return isinstance(value, type(None) | bool | int | float | str | list | dict) and all(map(is_plain, inner))

    assert is_plain(found)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.arange(3000.0), torch.cat([torch.arange(2999.0), torch.tensor([0.5])])),
        (torch.ones(4), torch.ones(2, 2)),
        (torch.ones(2), torch.full((2,), 1.0 + 2**-23)),
        (Asked({"a": torch.ones(2)}), Asked({"a": torch.zeros(2)})),
        (Held(1), Held(2)),
        (Held(1), Slotted(1)),
        (Slotted(1), Slotted(2)),
        (functools.partial(power, y=2), functools.partial(power, y=3)),
        (1.0, "1.0"),
    ],
)
def test_what_differs_differs(one, other):
    assert comparable(one) != comparable(other)


@pytest.mark.parametrize(
    "other",
    [
        torch.eye(3, dtype=torch.float64),
        torch.eye(3, dtype=torch.int8),
        np.eye(3),
        torch.eye(3).to_sparse(),
        -torch.eye(3) * -1.0,
        torch.eye(6)[::2, ::2],
        torch.nn.Parameter(torch.eye(3)),
    ],
)
def test_numbers_are_the_same_whatever_holds_them(other):
    assert comparable(other) == comparable(torch.eye(3))


def test_what_holds_itself_ends():
    value = Held(None)
    value.value = [value]
    assert comparable(value) == comparable(value)
