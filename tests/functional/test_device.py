"""The way of the functions on a GPU: the same answers, few operations, and one wait."""

import pytest
import torch

from pretend import DEVICE, pretended_device
from setpoint.functional import WarmStart, device, project_budget, project_gsp, prox_group_envelope
from setpoint.functional.budget_widths import project_widths
from setpoint.functional.device import transfer
from setpoint.functional.device.segments import Segments
from setpoint.functional.gsp import mean_hoyer


@pytest.fixture(autouse=True)
def pretended(monkeypatch):
    monkeypatch.setattr(device, "TYPES", {DEVICE.type})


@pytest.fixture(params=["few", "many"])
def size(request, monkeypatch):
    if request.param == "many":
        monkeypatch.setattr(transfer, "FEW", -1)
    return request.param


def draw(*shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = (1.0, 0.1, 30.0, 1e-3)
    return [(scales[i % 4] * torch.randn(shape, generator=generator)).to(dtype) for i, shape in enumerate(shapes)]


def there(tensors):
    return [t.to(DEVICE) if isinstance(t, torch.Tensor) and t.ndim else t for t in tensors]


def on_device(function, tensors, *args, **more):
    """What a function answers for tensors on the device, and what the device did for it."""
    with pretended_device() as counts:
        given = there(tensors)
        more = {key: there(value) if isinstance(value, list) else value for key, value in more.items()}
        counts.launches, counts.waits = 0, []
        found = function(given, *args, **more)
        launches, waits = counts.launches, list(counts.waits)
        assert all(f.device == DEVICE for f in found)
        return [f.cpu() for f in found], launches, waits


SETS = {
    "layers": draw((40_000,), (300, 64), (1_000,)),
    "rows": draw((64, 256), (100, 9)),
    "of all kinds": [*draw((9_000,), (50, 70), (5,), (1,), (0,)), torch.zeros(3, 40)],
    "bfloat16": draw((5_000,), (30, 64), dtype=torch.bfloat16),
    "float64": draw((5_000,), (30, 64), dtype=torch.float64),
    "transposed": [draw((70, 30))[0].t()],
}


@pytest.mark.parametrize("scale_invariant", [False, True])
@pytest.mark.parametrize("sparsity", [0.3, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("name", SETS)
def test_the_projection_is_that_of_the_cpu(name, sparsity, scale_invariant):
    vectors = SETS[name]
    found, _, waits = on_device(project_gsp, vectors, sparsity, scale_invariant=scale_invariant)
    expected = project_gsp(vectors, sparsity, scale_invariant=scale_invariant)
    for one, other in zip(found, expected):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert torch.equal(one == 0, other == 0)
        # What both leave open of the equation is seen enlarged where an entry just passes its threshold.
        if one.numel():
            assert float((one - other).abs().amax()) <= 1e-6 * float(other.abs().amax())
    before = mean_hoyer([v.double().reshape(-1, v.shape[-1]).abs() for v in vectors if v.numel()])
    reached = mean_hoyer([f.double().reshape(-1, f.shape[-1]).abs() for f in found if f.numel()])
    assert reached == pytest.approx(max(sparsity, before), abs=1e-3 if name == "bfloat16" else 1e-6)
    assert 1 <= len(waits) <= 2


def test_a_projection_takes_as_many_operations_however_many_vectors_there_are():
    _, one, _ = on_device(project_gsp, draw((100,), (30, 9)), 0.9)
    _, many, waits = on_device(project_gsp, draw(*[(100,), (30, 9)] * 20), 0.9)
    # Each tensor has its own result to be written.
    assert many - one <= 4 * 38
    assert len(waits) <= 2


def test_a_warm_start_saves_operations():
    vectors = draw((20_000,), (200, 50))
    warm = WarmStart()
    _, cold, _ = on_device(project_gsp, vectors, 0.9, warm=warm)
    assert warm.multiplier is not None
    _, again, waits = on_device(project_gsp, vectors, 0.9, warm=warm)
    assert again < 0.7 * cold
    assert len(waits) == 1


def test_ties_are_left_to_the_eager_way():
    vectors = [torch.ones(4, 6), torch.ones(10)]
    found, _, _ = on_device(project_gsp, vectors, 0.9)
    assert all(torch.equal(f, e) for f, e in zip(found, project_gsp(vectors, 0.9)))


def test_it_can_write_over_the_vectors():
    vectors = draw((500,), (20, 30))
    expected = project_gsp(vectors, 0.8)
    with pretended_device():
        given = there(vectors)
        assert project_gsp(given, 0.8, out=given) == given
        assert all(torch.allclose(g.cpu(), e, rtol=1e-6) for g, e in zip(given, expected))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_its_place(bad):
    vectors = draw((50,), (6, 7))
    vectors[1][2, 3] = bad
    with pytest.raises(ValueError, match="tensor 1 holds NaN or infinite"):
        on_device(project_gsp, vectors, 0.9)
    magnitudes = [v.abs() for v in vectors]
    with pytest.raises(ValueError, match="magnitudes 1 must be finite"):
        on_device(project_budget, magnitudes, 20)
    with pytest.raises(ValueError, match="magnitudes 1 must be finite"):
        on_device(prox_group_envelope, magnitudes, 20, 0.5)


MAGNITUDES = [m.abs() for m in draw((3_000,), (40, 50), (7, 3))]


@pytest.mark.parametrize(
    ("budget", "floors"),
    [*((b, None) for b in (1, 40, 2_000, 4_900)), (40, [1, 1, 1]), (40, [0, 0, 10]), (4_900, [1, 1, 1])],
)
@pytest.mark.usefixtures("size")
def test_the_largest_are_those_of_the_cpu(budget, floors):
    found, _, waits = on_device(project_budget, MAGNITUDES, budget, floors=floors)
    assert all(torch.equal(f, e) for f, e in zip(found, project_budget(MAGNITUDES, budget, floors=floors)))
    if floors is None:
        assert len(waits) == 1


@pytest.mark.usefixtures("size")
def test_ties_go_to_the_earlier_units():
    magnitudes = [torch.tensor([1.0, 2.0, 2.0]), torch.tensor([2.0, 3.0, 2.0, 0.5])]
    for budget in range(8):
        found, _, _ = on_device(project_budget, magnitudes, budget)
        assert all(torch.equal(f, e) for f, e in zip(found, project_budget(magnitudes, budget)))


@pytest.mark.parametrize("costs", [[1.0, 2.0, 5.0], [1.0, torch.linspace(0.0, 3.0, 50), 2.0]])
def test_unequal_costs_are_settled_on_the_cpu(costs, size):
    found, _, waits = on_device(project_budget, MAGNITUDES, 700, costs)
    assert all(torch.equal(f, e) for f, e in zip(found, project_budget(MAGNITUDES, 700, costs)))
    if size == "few":
        assert len(waits) == 1


def test_widths_are_settled_on_the_cpu():
    groups = [m.abs() for m in draw((64,), (32,), (16,))]

    def cost(widths):
        return widths[0] * widths[1] + widths[1] * widths[2]

    found, _, waits = on_device(project_widths, groups, 900, cost, floors=[1, 1, 1])
    assert all(torch.equal(f, e) for f, e in zip(found, project_widths(groups, 900, cost, floors=[1, 1, 1])))
    assert len(waits) == 1


BESIDE = {
    "nothing": {},
    "numbers": {"costs": [2.0, 1.0, 3.0], "weights": [1.0, 0.5, 2.0]},
    "tensors": {"costs": [1.0, torch.linspace(0.5, 3.0, 50), 2.0], "metric": [torch.rand(3_000) + 0.5, 1.0, 2.0]},
}


@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("beside", BESIDE)
def test_the_proximal_map_is_that_of_the_cpu(beside, debias, size):
    found, _, waits = on_device(prox_group_envelope, MAGNITUDES, 700, 0.2, debias=debias, **BESIDE[beside])
    expected = prox_group_envelope(MAGNITUDES, 700, 0.2, debias=debias, **BESIDE[beside])
    for one, other in zip(found, expected):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)
    if beside == "nothing":
        assert len(waits) <= (1 if size == "few" else 20)


def test_the_proximal_map_waits_as_often_however_many_tensors_there_are(monkeypatch):
    monkeypatch.setattr(transfer, "FEW", -1)
    _, few_launches, few = on_device(prox_group_envelope, MAGNITUDES, 500, 0.2)
    parts = [p.contiguous() for m in MAGNITUDES for p in m.flatten().split(100)]
    _, many_launches, many = on_device(prox_group_envelope, parts, 500, 0.2)
    assert len(many) == len(few)
    assert many_launches - few_launches <= 2 * len(parts)


def test_row_sums_over_several_pieces():
    shapes = [(2, 10_000), (3, 4_096), (5, 1), (1, 4_097), (0, 7)]
    tensors = [torch.rand(shape, dtype=torch.float64) for shape in shapes]
    rows, flat = Segments(shapes, torch.device("cpu")), torch.cat([t.flatten() for t in tensors])
    torch.testing.assert_close(rows.sums(flat), torch.cat([t.sum(1) for t in tensors]))
    assert torch.equal(rows.largest(flat), torch.cat([t.amax(1) for t in tensors]))
    assert torch.equal(rows.smallest(flat), torch.cat([t.amin(1) for t in tensors]))
    number = torch.arange(float(rows.rows))
    assert torch.equal(rows.spread(number), number.repeat_interleave(rows.lengths))


def test_the_pretended_device_counts_and_refuses():
    with pretended_device() as counts:
        x = torch.arange(4.0).to(DEVICE)
        counts.launches, counts.waits = 0, []
        y = (x * 2).view(2, 2).t()
        assert (counts.launches, counts.waits) == (1, [])
        assert float(y.sum()) == 12.0
        assert len(counts.waits) == 1
        assert x[x > 1].numel() == 2
        assert torch.tensor([1.0], device=DEVICE).device == DEVICE
        torch.ones(2).to(DEVICE, non_blocking=True)
        assert len(counts.waits) == 3
        with pytest.raises(RuntimeError, match="and on the CPU"):
            x + torch.ones(4)
        x.add_(1.0)
        assert x.tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["layers", "rows", "of all kinds", "float64"])
def test_a_gpu_itself(name, monkeypatch, recwarn):
    monkeypatch.setattr(device, "TYPES", {"cuda"})
    monkeypatch.setattr(transfer, "FEW", -1)
    vectors = SETS[name]
    given = [v.cuda() for v in vectors]
    magnitudes = [v.abs() for v in vectors]
    room = sum(v.numel() for v in vectors) // 10
    works = {
        "project_gsp": lambda v, m: project_gsp(v, 0.9),
        "project_budget": lambda v, m: project_budget(m, room),
        "prox_group_envelope": lambda v, m: prox_group_envelope(m, room, 0.2),
    }
    waits = {}
    for work, function in works.items():
        on_gpu = [m.cuda() for m in magnitudes]
        recwarn.clear()
        torch.cuda.set_sync_debug_mode("warn")
        found = function(given, on_gpu)
        torch.cuda.set_sync_debug_mode("default")
        waits[work] = len(recwarn)
        for one, other in zip(found, function(vectors, magnitudes)):
            assert one.is_cuda
            torch.testing.assert_close(one.cpu().double(), other.double(), rtol=1e-6, atol=1e-7)
    assert waits["project_gsp"] <= 2
    assert waits["project_budget"] == 1
