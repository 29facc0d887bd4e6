"""Grouped sparse projection against 60-digit cases, mpmath and brute force."""

import json
from pathlib import Path

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from setpoint.functional import hoyer, project_gsp

pytestmark = pytest.mark.usefixtures("path")

CASES = json.loads((Path(__file__).parent / "gsp_cases.json").read_text())
ALL = CASES["cases"] + CASES["extra_cases"]


def expected(case):
    return case.get("output_float") or case.get("tie_filled", case.get("right_limit"))["output_float"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", ALL, ids=[c["name"] for c in ALL])
def test_published_cases(case, dtype):
    x = [torch.tensor(v, dtype=dtype) for v in case["input"]]
    w = None if case["weights"] is None else [torch.tensor(v, dtype=dtype) for v in case["weights"]]
    out = project_gsp(x, case["target_sparsity"], w)
    rtol = 1e-9 if dtype == torch.float64 else 2e-5
    for z, want, source in zip(out, expected(case), x):
        assert z.dtype == dtype
        if case["unchanged"]:
            assert torch.equal(z, source)
        want = torch.tensor(want, dtype=torch.float64)
        assert torch.allclose(z.double(), want, rtol=0, atol=rtol * float(source.abs().max()))


def measure(vectors):
    values = [hoyer(v.double()) for v in vectors if v.numel() >= 2]
    return float(torch.stack(values).mean()) if values else 1.0


def reference_mu(vectors, sparsity):
    """Bisection on the dual with 50 digits; returns the linear objective of the optimum, jumps filled."""
    mpmath.mp.dps = 50
    a = [[mpmath.mpf(float(abs(e))) for e in v] for v in vectors if len(v) >= 2]
    beta = [1 / (mpmath.sqrt(len(v)) - 1) for v in a]
    level = len(a) * (1 - mpmath.mpf(sparsity))

    def solve(mu):
        total, objective = mpmath.mpf(0), mpmath.mpf(0)
        for v, b in zip(a, beta):
            shrunk = [max(e - mu * b, 0) for e in v]
            square = mpmath.fsum(e * e for e in shrunk)
            if square == 0:
                objective += max(v)
                continue
            root = mpmath.sqrt(square)
            total += b * (mpmath.fsum(shrunk) / root - 1)
            objective += mpmath.fsum(e * s for e, s in zip(v, shrunk)) / root
        return total, objective

    start, objective = solve(mpmath.mpf(0))
    if start <= level:
        return objective, True
    lo, hi = mpmath.mpf(0), max(max(v) / b for v, b in zip(a, beta)) * 2
    for _ in range(220):
        mid = (lo + hi) / 2
        lo, hi = (mid, hi) if solve(mid)[0] > level else (lo, mid)
    (g_lo, f_lo), (g_hi, f_hi) = solve(lo), solve(hi)
    # Inside a jump the dual is exact (zero gap): the objective is linear in the level between both limits.
    share = 0 if g_lo - g_hi < mpmath.mpf(10) ** -30 else (level - g_hi) / (g_lo - g_hi)
    return f_hi + share * (f_lo - f_hi), False


entries = st.one_of(st.integers(-4, 4).map(float), st.floats(-1.0, 1.0, allow_subnormal=False, width=32))
ragged = st.lists(st.lists(entries, min_size=1, max_size=7), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    ragged, st.floats(0.0, 1.0), st.sampled_from([torch.float32, torch.float64]), st.sampled_from([1e-25, 1.0, 1e20])
)
def test_optimal_and_exact(values, sparsity, dtype, scale):
    x = [torch.tensor(v, dtype=dtype) * scale for v in values]
    z = project_gsp(x, sparsity)
    long = [v for v in x if v.numel() >= 2]
    for before, after in zip(x, z):
        assert after.shape == before.shape
        assert after.dtype == dtype
        assert bool((after * before >= 0).all())
        if before.numel() < 2:
            assert torch.equal(before, after)
    if not long:
        return
    objective, unchanged = reference_mu([(v.double() / scale).tolist() for v in x], sparsity)
    tolerance = 1e-7 if dtype == torch.float64 else 3e-5
    if unchanged and measure(x) >= sparsity + 1e-9:
        assert all(torch.equal(b, a) for b, a in zip(x, z))
    assert measure(z) >= sparsity - tolerance
    if measure(x) < sparsity - tolerance:
        assert measure(z) <= sparsity + tolerance
    # <a, u> = |z| for each vector: the sum of the norms is the objective that the projection maximises.
    reached = sum(float(torch.linalg.vector_norm(v.double() / scale)) for v in z if v.numel() >= 2)
    largest = max(float(torch.linalg.vector_norm(v.double() / scale)) for v in long)
    assert reached == pytest.approx(float(objective), abs=50 * tolerance * max(largest, 1e-30), rel=50 * tolerance)


@settings(max_examples=60, deadline=None)
@given(ragged, st.floats(0.05, 1.0), st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4))
def test_scale_invariant_form_ignores_each_vectors_scale(values, sparsity, scales):
    x = [torch.tensor(v, dtype=torch.float64) for v in values]
    base = project_gsp(x, sparsity, scale_invariant=True)
    moved = project_gsp([v * s for v, s in zip(x, scales)], sparsity, scale_invariant=True)
    for a, b, s in zip(base, moved, scales):
        assert torch.allclose(a * s, b, rtol=1e-6, atol=1e-6 * s * float(a.abs().max() + 1e-30))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(entries, st.floats(0.1, 3.0)), min_size=2, max_size=6), min_size=1, max_size=3),
    st.floats(0.0, 1.0),
)
def test_weighted_reaches_at_least_the_target(values, sparsity):
    x = [torch.tensor([e for e, _ in v], dtype=torch.float64) for v in values]
    w = [torch.tensor([e for _, e in v], dtype=torch.float64) for v in values]
    z = project_gsp(x, sparsity, w)
    reached = torch.stack([hoyer(v, weights=u) for v, u in zip(z, w)]).mean()
    before = torch.stack([hoyer(v, weights=u) for v, u in zip(x, w)]).mean()
    assert float(reached) >= min(sparsity, 1.0) - 1e-7
    if float(before) >= sparsity:
        assert all(torch.equal(a, b) for a, b in zip(x, z))


def test_unit_weights_give_the_unweighted_projection():
    x = [torch.randn(9, 13, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    ones = [torch.ones_like(v) for v in x]
    for a, b in zip(project_gsp(x, 0.8), project_gsp(x, 0.8, ones)):
        assert torch.allclose(a, b, atol=1e-9)


def test_single_vector_is_the_euclidean_projection():
    """r = 1 is Hoyer's own projection: no point of the same sparsity lies nearer (random search around it)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, dtype=torch.float64, generator=generator)
    z = project_gsp(x, 0.7)
    distance = float((x - z).norm())
    for _ in range(3000):
        candidate = project_gsp(x + 0.5 * torch.randn(6, dtype=torch.float64, generator=generator), 0.7)
        scale = (candidate @ x) / (candidate @ candidate)
        assert float((x - scale * candidate).norm()) >= distance - 1e-9


def test_non_contiguous_rows_and_empty_tensors():
    x = torch.randn(8, 6).t()
    assert torch.equal(project_gsp(x, 0.8), project_gsp(x.contiguous(), 0.8))
    mixed = project_gsp([torch.empty(0), torch.empty(3, 0), torch.randn(4)], 0.9)
    assert [tuple(v.shape) for v in mixed] == [(0,), (3, 0), (4,)]
    assert project_gsp(torch.empty(0), 0.5).shape == (0,)


def test_what_the_docs_say_of_gaussian_weights():
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    assert float(hoyer(x)) == pytest.approx(0.2, abs=0.01)
    assert float((project_gsp(x, 0.9) == 0).float().mean()) == pytest.approx(0.98, abs=0.005)


def test_half_precision_keeps_its_dtype_and_target():
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    for dtype in (torch.float16, torch.bfloat16):
        z = project_gsp(x.to(dtype), 0.8)
        assert z.dtype == dtype
        assert measure(list(z)) == pytest.approx(0.8, abs=5e-3)


def test_the_global_form_does_not_collapse_layers_by_default_scale():
    """The paper's form drives layers of small scale to one weight; the scale-invariant one does not."""
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(n, generator=generator) * s for n, s in [(20_000, 0.02), (2_000, 0.05), (500, 0.001)]]
    paper = [int((z != 0).sum()) for z in project_gsp(layers, 0.9)]
    even = [int((z != 0).sum()) for z in project_gsp(layers, 0.9, scale_invariant=True)]
    assert min(paper) == 1
    assert all(k > 0.005 * v.numel() for k, v in zip(even, layers))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: project_gsp(torch.ones(3), 1.2), "sparsity=1.2"),
        (lambda: project_gsp(torch.ones(3), float("nan")), "sparsity=nan"),
        (lambda: project_gsp(torch.tensor([1.0, float("nan")]), 0.5), "tensor 0 holds NaN"),
        (lambda: project_gsp([torch.ones(2), torch.tensor([1.0, float("inf")])], 0.5), "tensor 1 holds NaN"),
        (lambda: project_gsp(torch.ones(2, 2, 2), 0.5), "flatten"),
        (lambda: project_gsp(torch.ones(2, dtype=torch.int64), 0.5), "floating dtype"),
        (lambda: project_gsp(torch.ones(2), 0.5, torch.tensor([1.0, -1.0])), "not negative"),
        (lambda: project_gsp(torch.ones(2), 0.5, torch.ones(3)), "shape"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
