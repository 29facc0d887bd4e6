"""Widths under a cost that multiplies them: within the budget, full, and near the best that there is."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from setpoint.functional.budget_widths import project_widths


def bilinear(first, last):
    """Weights of a chain of layers, the first and last widths fixed."""
    return lambda widths: sum(a * b for a, b in itertools.pairwise([first, *widths, last]))


def widths_of(kept):
    return [int(k.sum()) for k in kept]


def worth(magnitudes, widths):
    return sum(float(m.sort(descending=True).values[:n].square().sum()) for m, n in zip(magnitudes, widths))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(0, 10_000), st.floats(0.0, 1.0))
def test_within_the_budget_full_and_near_the_best(sizes, seed, share):
    generator = torch.Generator().manual_seed(seed)
    magnitudes = [torch.rand(n, generator=generator) for n in sizes]
    cost = bilinear(3, 2)
    least, most = cost([1] * len(sizes)), cost(sizes)
    budget = least + share * (most - least)
    kept = project_widths(magnitudes, budget, cost, floors=[1] * len(sizes))
    found = widths_of(kept)
    assert cost(found) <= budget * (1 + 1e-9)
    for i, n in enumerate(sizes):
        assert found[i] >= 1
        if found[i] < n:
            assert cost([*found[:i], found[i] + 1, *found[i + 1 :]]) > budget
        assert float(magnitudes[i][kept[i]].min()) >= float(magnitudes[i][~kept[i]].max()) if found[i] < n else True
    choices = itertools.product(*[range(1, n + 1) for n in sizes])
    best = max(worth(magnitudes, choice) for choice in choices if cost(choice) <= budget * (1 + 1e-9))
    assert worth(magnitudes, found) >= 0.6 * best


def test_groups_of_thousands_come_within_a_unit_of_the_budget():
    generator = torch.Generator().manual_seed(0)
    sizes = [64, 64, 128, 128, 256, 256, 512, 512]
    magnitudes = [torch.rand(n, generator=generator) for n in sizes]
    cost = bilinear(27, 10)
    kept = project_widths(magnitudes, 0.3 * cost(sizes), cost)
    assert 0.298 < cost(widths_of(kept)) / cost(sizes) <= 0.3


@pytest.mark.parametrize("multiple", [4, 16])
def test_widths_are_multiples_or_whole(multiple):
    generator = torch.Generator().manual_seed(0)
    sizes = [30, 64, 9]
    magnitudes = [torch.rand(n, generator=generator) for n in sizes]
    cost = bilinear(5, 5)
    found = widths_of(project_widths(magnitudes, 0.5 * cost(sizes), cost, floors=[1, 1, 1], multiple=multiple))
    assert all(n % multiple == 0 or n == size for n, size in zip(found, sizes))
    assert cost(found) <= 0.5 * cost(sizes)


def test_what_is_not_possible_is_refused():
    magnitudes = [torch.ones(4), torch.ones(4)]
    with pytest.raises(ValueError, match=r"a budget of 5 was asked for, but at most 6 can be reached|at most"):
        project_widths(magnitudes, 5.0, bilinear(3, 2), floors=[1, 1])
    with pytest.raises(ValueError, match="multiple=0"):
        project_widths(magnitudes, 5.0, bilinear(3, 2), multiple=0)
