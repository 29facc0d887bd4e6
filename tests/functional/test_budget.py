"""The projection onto a budget against brute force."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from setpoint.functional import budget as module
from setpoint.functional import project_budget

pytestmark = pytest.mark.usefixtures("path")

magnitude = st.one_of(st.integers(0, 4).map(float), st.floats(0, 1, allow_subnormal=False, width=32))


def best_worth(magnitudes, costs, room):
    """Most squared magnitude that any set of units within the budget keeps."""
    best = 0.0
    for size in range(len(magnitudes) + 1):
        for chosen in itertools.combinations(range(len(magnitudes)), size):
            if sum(costs[j] for j in chosen) <= room + 1e-9:
                best = max(best, sum(magnitudes[j] ** 2 for j in chosen))
    return best


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(magnitude, max_size=5), min_size=1, max_size=2),
    st.integers(0, 10),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([1e-30, 1.0, 1e30]),
)
def test_equal_costs_are_a_top_k(values, count, dtype, scale):
    tensors = [torch.tensor(v, dtype=dtype) * scale for v in values]
    kept = project_budget(tensors, count)
    flat = torch.cat(tensors).double()
    chosen = torch.cat(kept)
    assert int(chosen.sum()) == min(count, flat.numel())
    want = flat.sort(descending=True).values[:count]
    assert torch.equal(flat[chosen].sort(descending=True).values, want)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(magnitude, st.integers(1, 9)), min_size=1, max_size=9), st.integers(0, 40))
def test_unequal_costs_reach_the_best_of_all_sets(units, room):
    magnitudes = torch.tensor([m for m, _ in units], dtype=torch.float64)
    costs = torch.tensor([float(c) for _, c in units], dtype=torch.float64)
    kept = project_budget(magnitudes, room, costs)
    spent = float(costs[kept].sum())
    assert spent <= room
    assert not bool((~kept & (costs <= room - spent)).any()), "one more unit would have fitted"
    want = best_worth(magnitudes.tolist(), costs.tolist(), room)
    assert float(magnitudes[kept].square().sum()) == pytest.approx(want, rel=1e-9, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(magnitude, st.integers(1, 9)), min_size=1, max_size=6), min_size=1, max_size=3),
    st.integers(0, 60),
)
def test_unequal_costs_with_floors_leave_no_room(layers, extra):
    magnitudes = [torch.tensor([m for m, _ in units], dtype=torch.float64) for units in layers]
    costs = [torch.tensor([float(c) for _, c in units], dtype=torch.float64) for units in layers]
    tops = [int(m.argmax()) for m in magnitudes]
    room = sum(float(c[t]) for c, t in zip(costs, tops)) + extra
    kept = project_budget(magnitudes, room, costs, floors=[1] * len(layers))
    assert all(bool(k[t]) for k, t in zip(kept, tops))
    spent = sum(float(c[k].sum()) for c, k in zip(costs, kept))
    assert spent <= room
    assert all(not bool((~k & (c <= room - spent)).any()) for c, k in zip(costs, kept))


def test_many_unequal_costs_stay_within_one_unit_of_the_linear_bound():
    generator = torch.Generator().manual_seed(0)
    magnitudes = [torch.rand(n, generator=generator) for n in (300, 4000, 50)]
    costs = [27.0, torch.randint(1, 50, (4000,), generator=generator).double(), 4608.0]
    room = 60_000.0
    kept = project_budget(magnitudes, room, costs)
    each = [torch.as_tensor(c, dtype=torch.float64).expand(m.shape) for c, m in zip(costs, magnitudes)]
    cost, value, keep = torch.cat(each), torch.cat(magnitudes).double().square(), torch.cat(kept)
    assert float(cost[keep].sum()) <= room
    assert not bool((~keep & (cost <= room - float(cost[keep].sum()))).any())
    order = (value / cost).argsort(descending=True)
    whole = cost[order].cumsum(0) <= room
    bound = float(value[order][whole].sum()) + float(value.max())
    assert bound - 2 * float(value.max()) <= float(value[keep].sum()) <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_search_on_large_tensors_agrees_with_a_sort(dtype, monkeypatch):
    monkeypatch.setattr(module, "_SORTED", 64)
    generator = torch.Generator().manual_seed(0)
    tensors = [(torch.randn(n, generator=generator) * s).abs().to(dtype) for n, s in [(50_000, 1), (9_000, 3), (7, 9)]]
    flat = torch.cat(tensors)
    order = flat.double().argsort(descending=True, stable=True)
    for count in (0, 1, 7, 5_000, 59_006, 59_007, 70_000):
        want = torch.zeros(flat.numel(), dtype=torch.bool)
        want[order[:count]] = True
        assert torch.equal(torch.cat(project_budget(tensors, count)), want), count


def test_ties_go_to_the_lower_index():
    kept = project_budget([torch.ones(3), torch.ones(4)], 5)
    assert [k.tolist() for k in kept] == [[True] * 3, [True, True, False, False]]


def test_floors_hold_in_every_tensor_and_are_paid_from_the_budget():
    kept = project_budget([torch.full((100,), 9.0), torch.tensor([0.1, 0.2, 0.0])], 10, floors=[1, 2])
    assert kept[1].tolist() == [True, True, False]
    assert int(kept[0].sum()) == 8


def test_units_that_cost_nothing_stay():
    kept = project_budget(torch.tensor([0.0, 1.0, 2.0]), 1.0, torch.tensor([0.0, 1.0, 1.0]))
    assert kept.tolist() == [True, False, True]


def test_shapes_strides_and_empty_tensors():
    tensors = [torch.rand(4, 6).t(), torch.rand(2, 3, 4).permute(2, 0, 1), torch.empty(0, 3)]
    kept = project_budget(tensors, 10)
    assert [k.shape for k in kept] == [t.shape for t in tensors]
    assert sum(int(k.sum()) for k in kept) == 10
    smallest = min(float(t[k].min()) for t, k in zip(tensors, kept) if k.any())
    largest = max(float(t[~k].max()) for t, k in zip(tensors, kept) if (~k).any())
    assert smallest >= largest


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: project_budget(torch.tensor([1.0, float("nan")]), 1), "finite"),
        (lambda: project_budget(torch.tensor([1.0, -1.0]), 1), "not negative"),
        (lambda: project_budget(torch.ones(2), -1), "budget=-1"),
        (lambda: project_budget(torch.ones(2), float("nan")), "budget=nan"),
        (lambda: project_budget(torch.ones(2), 1, torch.tensor([1.0, -2.0])), "costs"),
        (lambda: project_budget([torch.ones(4)], 1, floors=[3]), "in any case"),
        (lambda: project_budget([torch.ones(4)], 1, [1.0, 2.0]), "2 costs"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
