"""The top-k in pieces beside a stable sort and beside the path of few."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from setpoint.functional import budget, largest, project_budget
from setpoint.functional.bits import Mask
from setpoint.functional.values import Among, Entries


@pytest.fixture(autouse=True)
def used(monkeypatch):
    """The answers that were found in pieces."""
    answers = []
    inner = largest.largest_of_many

    def counted(*args):
        answers.append(inner(*args))
        return answers[-1]

    monkeypatch.setattr(budget, "largest_of_many", counted)
    return answers


def by_sort(tensors, count):
    """The largest of all, ties to the earlier tensor and the lower index."""
    flat = torch.cat([t.flatten() for t in tensors])
    keep = torch.zeros(len(flat), dtype=torch.bool)
    keep[flat.argsort(descending=True, stable=True)[:count]] = True
    return [k.reshape(t.shape) for k, t in zip(keep.split([t.numel() for t in tensors]), tensors)]


def draw(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(s, generator=generator).abs() * (1 + i)).to(dtype) for i, s in enumerate(shapes)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kept", [1e-5, 0.01, 0.1, 0.5, 0.9, 0.9999])
def test_it_is_a_top_k(dtype, kept, used):
    tensors = draw((400, 500), (64, 3, 7, 7), (300_001,), (0,), dtype=dtype)
    count = max(1, int(kept * sum(t.numel() for t in tensors)))
    masks = project_budget(tensors, count)
    assert all(torch.equal(m, e) for m, e in zip(masks, by_sort(tensors, count)))
    assert len(used) == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.001, 0.999), st.integers(2, 60))
def test_many_ties(seed, kept, levels):
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randint(levels, (n,), generator=generator).float() for n in (100_000, 70_000)]
    count = max(1, int(kept * 170_000))
    masks = project_budget(tensors, count)
    assert all(torch.equal(m, e) for m, e in zip(masks, by_sort(tensors, count)))


def test_ties_across_pieces_and_tensors_go_to_the_first(used):
    tensors = draw((600_000,), (300_000,))
    for tensor in tensors:
        tensor[::1000] = 2.5
    above = sum(int((t > 2.5).sum()) for t in tensors)
    for more in (1, 300, 650, 899):
        masks = project_budget(tensors, above + more)
        assert all(torch.equal(m, e) for m, e in zip(masks, by_sort(tensors, above + more)))
    assert len(used) == len((1, 300, 650, 899))


def test_memory_order_does_not_matter(used):
    weight = torch.randn(64, 64, 7, 7).abs().to(memory_format=torch.channels_last)
    mask = project_budget(weight, 20_000)
    assert torch.equal(mask, by_sort([weight], 20_000)[0])
    assert len(used) == 1
    gaps = torch.rand(1000, 400)[:, ::2]
    assert torch.equal(project_budget(gaps, 1000), by_sort([gaps], 1000)[0])


def test_neighbours_that_are_alike_widen_the_search(used):
    # Sorted: a sample in runs says less than its number of entries.
    tensor = torch.rand(500_000).sort().values
    for kept in (1000, 50_000, 250_000):
        assert torch.equal(project_budget(tensor, kept), by_sort([tensor], kept)[0])
    assert len(used) == 3


def test_floors_that_the_cut_breaks_are_kept():
    tensors = draw((200_000,), (50,))
    tensors[1] *= 1e-6
    masks = project_budget(tensors, 1000, floors=[1, 3])
    assert int(masks[1].sum()) == 3
    assert int(masks[0].sum()) == 997
    assert torch.equal(masks[1], by_sort(tensors[1:], 3)[0])


def test_equal_costs_other_than_one(used):
    tensors = draw((200_000,))
    assert torch.equal(project_budget(tensors, 1000.0, [0.1])[0], by_sort(tensors, 10_000)[0])
    assert len(used) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0, -0.001])
def test_bad_magnitudes_are_refused(bad):
    tensors = draw((10,), (300_000,))
    tensors[1][-7] = bad
    with pytest.raises(ValueError, match="magnitudes 1 must be finite and not negative"):
        project_budget(tensors, 1000)


def eager(tensors, count, floors):
    """As few are cut: the reference of supports."""
    return budget._project(tensors, count, [torch.ones((), dtype=torch.float64)] * len(tensors), floors)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.sampled_from([torch.float32, torch.float64]))
def test_supports_are_those_of_few(seed, layers, dtype):
    draw = torch.Generator().manual_seed(seed)

    def one():
        size = int(torch.randint(400, (), generator=draw))
        x = torch.randn(size, generator=draw, dtype=dtype)
        kind = int(torch.randint(4, (), generator=draw))
        return [x, (3 * x).round(), x * (torch.rand(size, generator=draw) < 0.3), torch.ones_like(x)][kind]

    tensors = [one() for _ in range(layers)]
    floors = [int(torch.randint(4, (), generator=draw)) for _ in tensors]
    least = sum(min(f, t.numel()) for f, t in zip(floors, tensors))
    count = least + int(torch.randint(sum(t.numel() for t in tensors) - least + 2, (), generator=draw))
    divisors = [torch.tensor(1.0 + 0.7 * (i % 2), dtype=dtype) for i in range(layers)]
    found = largest.largest_of_many([Entries(t, d) for t, d in zip(tensors, divisors)], count, floors)
    asked = eager([t.abs() / d for t, d in zip(tensors, divisors)], count, floors)
    assert all(torch.equal(f, a) for f, a in zip(found, asked))


def test_zeros_among_the_candidates_come_before_all_others():
    values = torch.zeros(200_000)
    mask = torch.rand(200_000, generator=torch.Generator().manual_seed(2)) < 0.4
    values[::3] = 1.0
    (found,) = largest.largest_of_many([Among(Entries(values), Mask.of(mask))], int(mask.sum()), [0])
    assert torch.equal(found, mask)
    (found,) = largest.largest_of_many([Among(Entries(values), Mask.of(mask), wanted=False)], 1000, [0])
    assert not bool((found & mask).any())
    assert bool((values[found] == 1.0).all())
