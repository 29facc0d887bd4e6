"""The group sparse envelope and its proximal maps against worked cases, 40-digit solutions, Fenchel gaps and cvxpy."""

import json
import math
from pathlib import Path

import cvxpy
import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from setpoint.functional import envelope_search, group_envelope, prox_group_envelope

pytestmark = pytest.mark.usefixtures("path")

HERE = Path(__file__).parent
CASES = json.loads((HERE / "envelope_cases.json").read_text())["cases"]
METRIC_CASES = json.loads((HERE / "envelope_metric_cases.json").read_text())["cases"]
DTYPES = [torch.float64, torch.float32]
RTOL = {torch.float64: 1e-12, torch.float32: 1e-6}


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def norms(groups, dtype):
    return torch.stack([double(g).norm() for g in groups]).to(dtype)


# Worked cases


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=[c["name"] for c in CASES])
def test_cases_of_the_value(case, dtype):
    value = group_envelope(norms(case["groups"], dtype), case["k"], double(case["d"]), double(case["w"]))
    assert value.dtype == dtype
    assert value.shape == ()
    assert float(value) == pytest.approx(float(case["value"]), rel=RTOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=[c["name"] for c in CASES])
def test_cases_of_the_proximal_map(case, dtype):
    magnitudes = norms(case["groups"], dtype)
    factors = prox_group_envelope(magnitudes, case["k"], case["lam"], double(case["d"]), double(case["w"]))
    assert factors.dtype == dtype
    for group, want, factor in zip(case["groups"], case["prox"], factors):
        got = double(group) * float(factor)
        assert torch.allclose(got, double(want), rtol=0, atol=RTOL[dtype] * float(magnitudes.max()))
        assert bool((got == 0).all()) == bool((double(want) == 0).all()), "zeros are exact, and no others"
    at_prox = group_envelope(magnitudes * factors, case["k"], double(case["d"]), double(case["w"]))
    assert float(at_prox) == pytest.approx(float(case["value_at_prox"]), rel=10 * RTOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", METRIC_CASES, ids=range(len(METRIC_CASES)))
def test_cases_with_a_metric(case, dtype):
    magnitudes = norms(case["groups"], dtype)
    metric = double(case["h_block"])
    factors = prox_group_envelope(magnitudes, case["k"], case["lam"], double(case["d"]), metric=metric)
    for group, want, factor in zip(case["groups"], case["prox_block"], factors):
        atol = RTOL[dtype] * float(magnitudes.max())
        assert torch.allclose(double(group) * float(factor), double(want), rtol=0, atol=atol)


# Independent references, in 40 digits


def mp_fractions(lo, hi, costs, level):
    """u of ramps from 0 at `lo` to 1 at `hi` (equal: a step, ties shared) whose cost is `level`; by a sorted sweep."""

    def at(alpha):
        return [mpmath.mpf(alpha >= b) if a == b else min(max((alpha - a) / (b - a), 0), 1) for a, b in zip(lo, hi)]

    def spent(u):
        return mpmath.fsum(d * x for d, x in zip(costs, u))

    below = [mpmath.mpf(0) for _ in lo]
    for point in sorted({*lo, *hi}):
        step = [mpmath.mpf(0) if a == b == point else x for a, b, x in zip(lo, hi, at(point))]
        for u in (step, at(point)):
            if spent(u) >= level:
                rise = spent(u) - spent(below)
                theta = (level - spent(below)) / rise if rise else 1
                return [x + theta * (y - x) for x, y in zip(below, u)]
            below = u
    return below


def mp_factors(r, level, strength, d, w, h, debias):
    r, d, w, h = ([mpmath.mpf(x) for x in values] for values in (r, d, w, h))
    rho = [mpmath.mpf(strength) * x / y for x, y in zip(w, h)]
    width = [1 - x if debias else mpmath.mpf(1) for x in rho]
    alive = [j for j in range(len(r)) if r[j] > 0]
    u = [mpmath.mpf(1)] * len(r)
    if mpmath.fsum(d[j] for j in alive) > level:
        c = {j: r[j] * mpmath.sqrt(w[j] / d[j]) for j in alive}
        lo, hi = [rho[j] / c[j] for j in alive], [(rho[j] + width[j]) / c[j] for j in alive]
        found = mp_fractions(lo, hi, [d[j] for j in alive], level)
        u = [mpmath.mpf(0)] * len(r)
        for j, x in zip(alive, found):
            u[j] = x
    return [float(x / (x + p * (1 - x)) if debias else x / (x + p)) for x, p in zip(u, rho)]


def mp_value(r, level, d, w):
    """By definition, with the u of a sorted sweep."""
    r, d, w = ([mpmath.mpf(x) for x in values] for values in (r, d, w))
    alive = [j for j in range(len(r)) if r[j] > 0]
    u = [mpmath.mpf(1)] * len(alive)
    if mpmath.fsum(d[j] for j in alive) > level:
        hi = [mpmath.sqrt(d[j] / w[j]) / r[j] for j in alive]
        u = mp_fractions([mpmath.mpf(0)] * len(hi), hi, [d[j] for j in alive], level)
    return mpmath.fsum(w[j] * r[j] ** 2 / x for j, x in zip(alive, u)) / 2


norm = st.one_of(st.integers(0, 4).map(float), st.floats(1 / 64, 10, width=32))
factor = st.one_of(st.sampled_from([1.0, 1.0, 2.0]), st.floats(0.25, 5, width=32))
group = st.tuples(norm, factor, factor, factor)
problem = st.lists(st.lists(group, max_size=4), min_size=1, max_size=3).filter(lambda layers: any(layers))
scale = st.sampled_from([1e-20, 1.0, 1e20])
share = st.floats(0.02, 1.1)


def arguments(layers, size, fraction, whole):
    """Ragged magnitudes, costs, weights and metric, a budget that may be whole, and all of it flat."""
    ragged = [[double([g[i] for g in layer]) for layer in layers] for i in range(4)]
    ragged[0] = [m * size for m in ragged[0]]
    flat = [torch.cat(tensors).tolist() for tensors in ragged]
    budget = fraction * sum(flat[1])
    return ragged, flat, float(max(1, round(budget))) if whole else budget


@settings(max_examples=80, deadline=None)
@given(problem, scale, share, st.booleans())
def test_value_against_its_definition(layers, size, fraction, whole):
    mpmath.mp.dps = 40
    (r, d, w, _), flat, budget = arguments(layers, size, fraction, whole)
    want = mp_value(flat[0], budget, flat[1], flat[2])
    assert float(group_envelope(r, budget, d, w)) == pytest.approx(float(want), rel=1e-12)


@settings(max_examples=150, deadline=None)
@given(problem, scale, share, st.booleans(), st.sampled_from([1e-6, 0.01, 0.3, 0.9, 0.999, 1.0]), st.booleans())
def test_factors_against_a_sorted_sweep(layers, size, fraction, whole, portion, debias):
    mpmath.mp.dps = 40
    (r, d, w, h), flat, budget = arguments(layers, size, fraction, whole)
    limit = min(y / x for x, y in zip(flat[2], flat[3]))
    strength = portion * limit if debias else 30 * portion
    if debias and portion == 1.0:  # a step: what ties only in exact numbers is cut anywhere
        w, h, strength = None, None, 1.0
        d, flat[1:] = None, [[1.0] * len(flat[0])] * 3
    factors = torch.cat(prox_group_envelope(r, budget, strength, d, w, h, debias=debias))
    want = double(mp_factors(flat[0], budget, strength, *flat[1:], debias))
    alive = double(flat[0]) > 0
    atol = 1e-12 * (1000 if debias and portion == 0.999 else 1)
    assert torch.allclose(factors[alive], want[alive], rtol=0, atol=atol)


def knapsack(profits, costs, budget):
    """Fractional knapsack: twice the envelope's conjugate."""
    total = 0.0
    for p, d in sorted(zip(profits, costs), key=lambda item: -item[0] / item[1]):
        total += p * min(1.0, max(budget, 0.0) / d)
        budget -= d
    return total


@settings(max_examples=150, deadline=None)
@given(problem, scale, share, st.booleans(), st.sampled_from([1e-4, 0.1, 1.0, 20.0]))
def test_the_proximal_map_is_optimal(layers, size, fraction, whole, strength):
    """The gradient of the distance at the answer is a subgradient of the envelope there: R(x) + R*(g) = <x, g>."""
    mpmath.mp.dps = 40
    (r, d, w, h), flat, budget = arguments(layers, size, fraction, whole)
    if max(flat[0]) == 0:
        return
    x = torch.cat([m * f for m, f in zip(r, prox_group_envelope(r, budget, strength, d, w, h))])
    g = double(flat[3]) * (double(flat[0]) - x) / strength
    value = float(mp_value(x.tolist(), budget, flat[1], flat[2]))
    conjugate = 0.5 * knapsack((g.square() / double(flat[2])).tolist(), flat[1], budget)
    assert value + conjugate == pytest.approx(float(x @ g), rel=1e-11)


# cvxpy

SMALL = [
    (0.5, 2.0, [4.0, 3.0, 2.0, 1.0, 0.5], [1.0] * 5, [1.0] * 5, [1.0] * 5),
    (0.8, 5.0, [3.0, 2.0, 1.0, 1.5, 0.3], [3.0, 1.0, 4.0, 2.0, 3.0], [1.0] * 5, [1.0] * 5),
    (0.2, 2.5, [2.0, 2.0, 2.0, 0.1], [1.0, 2.0, 1.0, 1.0], [0.5, 2.0, 1.0, 1.5], [0.9, 2.5, 1.5, 1.7]),
]


def cvxpy_envelope(x, u, w):
    return 0.5 * cvxpy.sum([w[j] * cvxpy.quad_over_lin(x[j], u[j]) for j in range(len(w))])


def solve(objective, u, d, level):
    limits = [u >= 0, u <= 1, double(d).numpy() @ u <= level]
    return cvxpy.Problem(cvxpy.Minimize(objective), limits).solve(solver=cvxpy.CLARABEL)


@pytest.mark.parametrize(("strength", "level", "r", "d", "w", "h"), SMALL)
def test_cvxpy_agrees_on_the_value(strength, level, r, d, w, h):
    u = cvxpy.Variable(len(r))
    want = solve(cvxpy_envelope(r, u, w), u, d, level)
    assert float(group_envelope(double(r), level, double(d), double(w))) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize(("strength", "level", "r", "d", "w", "h"), SMALL)
def test_cvxpy_agrees_on_the_proximal_maps(strength, level, r, d, w, h, debias):
    u, x = cvxpy.Variable(len(r)), cvxpy.Variable(len(r))
    z, bowl = double(r).numpy(), double(h) - strength * double(w) * debias
    distance = 0.5 * cvxpy.sum_squares(cvxpy.multiply(bowl.sqrt().numpy(), x)) - (double(h).numpy() * z) @ x
    solve(strength * cvxpy_envelope(x, u, w) + distance, u, d, level)
    factors = prox_group_envelope(double(r), level, strength, double(d), double(w), double(h), debias=debias)
    assert torch.allclose(factors * double(r), torch.from_numpy(x.value), rtol=0, atol=3e-4)


# The gradient


def test_gradients_by_finite_differences():
    generator = torch.Generator().manual_seed(0)
    for level in (0.7, 2.0, 4.5, 50.0):
        r = [torch.rand(n, generator=generator, dtype=torch.float64).requires_grad_() for n in (5, 3)]
        d, w = [torch.rand(5, generator=generator).double() + 0.5, 2.0], [0.7, torch.rand(3, generator=generator) + 1]
        assert torch.autograd.gradcheck(lambda *m: group_envelope(m, level, d, w), r)  # noqa: B023
        assert torch.autograd.gradgradcheck(lambda *m: group_envelope(m, level, d, w), r)  # noqa: B023


def test_gradient_on_the_entries_of_groups():
    entries = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0], [0.0, -0.5]], requires_grad=True)
    group_envelope(torch.linalg.vector_norm(entries, dim=1), 1).backward()
    tau = 6.5  # k = 1: half the squared sum of the norms
    want = [[0.6 * tau, 0.8 * tau], [0.0, 0.0], [tau, 0.0], [0.0, -tau]]
    assert torch.allclose(entries.grad, torch.tensor(want))


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_gradient_survives_where_squares_do_not(size):
    r = (double([3.0, 2.0, 1.0]) * size).requires_grad_()
    group_envelope(r, 2).backward()
    want = double([3.0, 3.0, 3.0])  # (3 + 2 + 1) / 2 = tau = the largest norm
    assert torch.allclose(r.grad / size, want)


def test_infinite_value_has_a_finite_gradient():
    r = double([1.0, 0.0]).requires_grad_()
    value = group_envelope(r, 0)
    value.backward()
    assert math.isinf(value.detach())
    assert bool(r.grad.isfinite().all())


# Limits and edges


def test_levels_between_group_lasso_and_ridge():
    r = double([3.0, 0.0, 1.0, 2.5])
    assert float(group_envelope(r, 1)) == pytest.approx(0.5 * float(r.sum()) ** 2)
    assert float(group_envelope(r, 3)) == pytest.approx(0.5 * float(r.square().sum()))
    values = [float(group_envelope(r, k)) for k in (0, 0.5, 1, 1.5, 2, 2.5, 3, 4)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("debias", [False, True])
def test_limits_of_the_strength(debias):
    r = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    top = torch.zeros(40, dtype=torch.float64)
    top[r.topk(7).indices] = 1.0
    assert torch.equal(prox_group_envelope(r, 7, 0.0, debias=debias), torch.ones_like(r))
    tiny = prox_group_envelope(r, 7, 1e-9, debias=debias)
    slope = torch.autograd.functional.jacobian(lambda m: group_envelope(m, 7), r) - (r if debias else 0.0)
    assert torch.allclose((1 - tiny) * r / 1e-9, slope, rtol=1e-5, atol=1e-5)
    if debias:
        assert torch.equal(prox_group_envelope(r, 7, 1.0, debias=True), top)
        assert torch.equal(prox_group_envelope(r, 7, 1.0 - 1e-12, debias=True), top)
    else:
        huge = prox_group_envelope(r, 7, 1e9)
        assert torch.equal(huge > 0, top > 0)
        assert torch.allclose(huge * (1 + 1e9), top)


@pytest.mark.parametrize("count", [9, 40_000])
def test_the_hard_choice_is_greedy_with_one_group_in_part(count):
    generator = torch.Generator().manual_seed(1)
    r = 10.0 ** (-12 * torch.rand(count, generator=generator, dtype=torch.float64))
    d = 10.0 ** (12 * torch.rand(count, generator=generator, dtype=torch.float64))
    level = 0.3 * float(d.sum())
    order = (r / d.sqrt()).argsort(descending=True)
    want = torch.empty_like(r)
    want[order] = ((level - d[order].cumsum(0) + d[order]) / d[order]).clamp(0, 1)
    got = prox_group_envelope(r, level, 1.0, d, debias=True)
    assert int(((want > 0) & (want < 1)).sum()) == 1
    assert torch.allclose(got * d, want * d, rtol=0, atol=1e-9 * level)
    assert torch.equal(got > 0, want > 0)


@settings(max_examples=50, deadline=None)
@given(st.lists(norm, min_size=1, max_size=8), st.floats(0.1, 9), st.floats(0.001, 0.99))
def test_the_de_biased_map_is_the_rescaled_plain_one(values, level, strength):
    r = double(values)
    further = strength / (1 - strength)
    want = (1 + further) * prox_group_envelope(r, level, further)
    got = prox_group_envelope(r, level, strength, debias=True)
    assert torch.allclose(got * r, want * r, rtol=0, atol=1e-11)
    assert bool((got <= 1.0).all())


def test_whole_groups_are_not_touched_and_the_others_are_exactly_zero():
    r = torch.rand(50_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factors = prox_group_envelope(r, 500, 0.9999, debias=True)
    assert int((factors > 0).sum()) - int((factors == 1).sum()) < 20
    again = prox_group_envelope(r * (factors == 1), 500, 0.3, debias=True)
    assert torch.equal(again, torch.ones_like(r)), "points within the budget do not move"


def test_budgets_of_zero_and_of_everything():
    r = double([3.0, 0.0, 1.0])
    for strength in (0.0, 0.5):
        assert torch.equal(prox_group_envelope(r, 0, strength), torch.zeros_like(r))
    assert torch.equal(prox_group_envelope(r, 2, 0.25), torch.full_like(r, 0.8))
    assert torch.equal(prox_group_envelope(r, math.inf, 0.25, debias=True), torch.ones_like(r))
    assert float(group_envelope(torch.zeros(3), 0)) == 0.0


def test_groups_without_cost_or_weight():
    r, d, w = double([1.0, 9.0, 2.0, 3.0]), double([0.0, 1.0, 1.0, 1.0]), double([1.0, 0.0, 1.0, 1.0])
    factors = prox_group_envelope(r, 1, 0.5, d, w)
    assert factors[0] == pytest.approx(1 / 1.5), "free: whole, and shrunk as whole groups are"
    assert factors[1] == 1.0, "not penalised"
    rest = prox_group_envelope(r[2:], 1, 0.5)
    assert torch.allclose(factors[2:], rest)
    assert float(group_envelope(r, 1, d, w)) == pytest.approx(0.5 + float(group_envelope(r[2:], 1)))
    assert prox_group_envelope(r, 0, 0.5, d, w).tolist() == [pytest.approx(1 / 1.5), 1.0, 0.0, 0.0]


@pytest.mark.parametrize("strength", [1e-3, 0.5, 1.0])
def test_ties_share_one_fraction(strength):
    factors = prox_group_envelope([torch.full((3,), 2.0), torch.tensor([2.0, 5.0, 0.1])], 2, strength, debias=True)
    tied = torch.cat([factors[0], factors[1][:1]])
    assert len(set(tied.tolist())) == 1
    if strength == 1.0:
        assert torch.allclose(tied, torch.full((4,), 0.25))
        assert factors[1][1:].tolist() == [1.0, 0.0]


def test_flat_pieces_of_rounded_costs_leave_exact_zeros():
    """0.1 + 0.2 is not 0.3 in doubles; the group after the cut must still be exactly zero."""
    r, d = double([5.0, 4.0, 1.0, 0.9]), double([0.1, 0.2, 0.7, 0.4])
    for level in (0.3, 0.1 + 0.2):
        assert prox_group_envelope(r, level, 0.999, d, debias=True).tolist() == [1.0, 1.0, 0.0, 0.0]


# Tensors


@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("strength", [1e-4, 0.3, 1.0])
def test_the_search_over_many_groups_agrees_with_that_over_few(debias, strength, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    r = [(torch.randn(n, generator=generator) * s).abs().double() for n, s in [(9000, 1), (3000, 3), (7, 9)]]
    r[0][:2000] = 0.25
    d = [1.0, torch.randint(1, 9, (3000,), generator=generator).double(), 4.0]
    h = [2.0, 1.0, torch.rand(7, generator=generator).double() + 1.0]
    levels = (0.5, 400.0, 9000.0, 20_000.0)
    want = [torch.cat(prox_group_envelope(r, k, strength, d, None, h, debias=debias)) for k in levels]
    value = [float(group_envelope(r, k, d)) for k in levels]
    for name, size in (("_FEW", 64), ("_SAMPLE", 50), ("_PIECE", 1000)):
        monkeypatch.setattr(envelope_search, name, size)
    for k, factors, number in zip(levels, want, value):
        got = torch.cat(prox_group_envelope(r, k, strength, d, None, h, debias=debias))
        assert torch.allclose(got, factors, rtol=0, atol=1e-11)
        assert torch.equal(got == 0, factors == 0)
        assert float(group_envelope(r, k, d)) == pytest.approx(number, rel=1e-12)


def test_shapes_strides_dtypes_and_empty_tensors():
    generator = torch.Generator().manual_seed(0)
    r = [torch.rand(4, 6, generator=generator).t(), torch.empty(0, 3), torch.rand((), generator=generator)]
    r.append(torch.rand(2, 3, generator=generator).bfloat16())
    d = [torch.rand(6, 1, generator=generator) + 0.5, 1.0, 2.0, torch.ones(3)]
    factors = prox_group_envelope(r, 5, 0.3, d)
    assert [f.shape for f in factors] == [m.shape for m in r]
    assert {f.dtype for f in factors} == {torch.float32}
    flat = torch.cat([m.double().flatten() for m in r])
    costs = torch.cat([torch.as_tensor(c).double().expand(m.shape).flatten() for c, m in zip(d, r)])
    want = prox_group_envelope(flat, 5, 0.3, costs)
    assert torch.allclose(torch.cat([f.flatten().double() for f in factors]), want, atol=1e-7)
    assert float(group_envelope(r, 5, d)) == pytest.approx(float(group_envelope(flat, 5, costs)), rel=1e-6)
    assert prox_group_envelope([], 1, 0.5) == []
    assert float(group_envelope([], 1)) == float(group_envelope(torch.empty(0), 1)) == 0.0


def test_inputs_are_left_alone():
    r = double([3.0, 2.0, 1.0])
    prox_group_envelope(r, 1, 0.3, debias=True)
    group_envelope(r, 1)
    assert r.tolist() == [3.0, 2.0, 1.0]


def test_factors_of_single_weights_apply_to_the_weights():
    weights = torch.tensor([[4.0, -3.0], [2.0, -0.5]])
    factors = prox_group_envelope(weights.abs(), 2, 0.5)
    assert torch.allclose(weights * factors, torch.tensor([[4 / 1.5, -1.75], [0.75, 0.0]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": -1.0}, "budget=-1.0 must be"),
        ({"budget": math.nan}, "budget=nan must be"),
        ({"strength": -0.1}, "strength=-0.1 must be"),
        ({"strength": math.inf}, "strength=inf must be"),
        ({"strength": math.nan}, "strength=nan must be"),
        ({"strength": 0.6, "debias": True, "weights": 2.0}, "strength=0.6 is too large .* at most 0.5"),
        ({"strength": 1e308, "metric": 0.1}, "overflows"),
        ({"metric": 0.0}, "metric of tensor 0 must be finite and positive"),
        ({"weights": double([1.0, -1.0])}, "weights of tensor 0 must be finite and not negative"),
        ({"costs": double([1.0, math.nan])}, "costs of tensor 0 must be finite and not negative"),
        ({"costs": torch.ones(3)}, r"costs of tensor 0 have shape \(3,\), its magnitudes \(2,\)"),
        ({"magnitudes": double([1.0, math.nan])}, "magnitudes 0 must be finite"),
        ({"magnitudes": double([1.0, math.inf])}, "magnitudes 0 must be finite"),
        ({"magnitudes": double([1.0, -1.0])}, "magnitudes 0 must be finite and not negative, but reach from -1.0"),
        ({"magnitudes": torch.ones(2, dtype=torch.int64)}, "a floating dtype is needed"),
        ({"magnitudes": [torch.ones(2)], "costs": [1.0, 1.0]}, "2 costs were given for 1 tensors"),
    ],
)
def test_errors_name_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        prox_group_envelope(**{"magnitudes": double([1.0, 2.0]), "budget": 1, "strength": 0.5, **options})
    if not {"strength", "metric"} & set(options):
        with pytest.raises(ValueError, match=message):
            group_envelope(**{"magnitudes": double([1.0, 2.0]), "budget": 1, **options})
