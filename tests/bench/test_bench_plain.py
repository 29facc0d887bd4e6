"""The plain projections that ours are timed beside agree with ours, and with what was asked."""

import pytest
import torch

from plain import plain_budget, plain_envelope, plain_gsp
from setpoint.bench.exactness import off_count, off_envelope, off_hoyer
from setpoint.functional import hoyer, project_budget, project_gsp, prox_group_envelope

SETS = {
    "layers": [(70,), (9,), (400,)],
    "rows": [(30, 40)],
    "both": [(6, 25), (50,), (20, 9)],
    "with single entries": [(6, 25), (1,), (20, 9), (3, 1)],
}


def drawn(name, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SETS[name]]


@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("name", SETS)
def test_gsp(name, sparsity):
    vectors = drawn(name, torch.float64)
    ours, plain = project_gsp(vectors, sparsity), plain_gsp(vectors, sparsity, tolerance=1e-10)
    for a, b in zip(ours, plain):
        assert torch.allclose(a, b, atol=1e-8)
    assert off_hoyer(plain, sparsity)["off"] < 1e-9
    assert off_hoyer(plain_gsp(drawn(name), sparsity), sparsity)["off"] < 2e-6


def test_gsp_of_what_is_sparser_already_is_the_same():
    vectors = [torch.tensor([0.0, 0.0, 3.0, -0.1])]
    assert torch.equal(plain_gsp(vectors, 0.2)[0], vectors[0])


@pytest.mark.parametrize("budget", [0, 1, 57, 500, 10_000])
def test_budget_with_ties(budget):
    magnitudes = [(4 * m.abs()).round() for m in drawn("both")]
    ours, plain = project_budget(magnitudes, budget), plain_budget(magnitudes, budget)
    for a, b in zip(ours, plain):
        assert torch.equal(a, b)


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("strength", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("budget", [1.0, 37.5, 290.0, 301.0])
def test_envelope(budget, strength, debias):
    norms = torch.rand(300, generator=torch.Generator().manual_seed(1)) + 1e-3
    ours = prox_group_envelope(norms, budget, strength, debias=debias)
    plain = plain_envelope(norms, budget, strength, debias)
    assert torch.allclose(ours, plain, atol=2e-6)


def test_what_is_off_is_seen():
    vectors = drawn("rows")
    found = float(torch.stack([hoyer(row.double()) for row in vectors[0]]).mean())
    assert off_hoyer(vectors, 0.9)["off"] == pytest.approx(abs(found - 0.9), abs=1e-12)
    assert off_hoyer([torch.zeros(5)], 1.0)["off"] == 0.0
    assert off_count([torch.tensor([True, False]), torch.tensor([True])], 3) == {"off": -1}


@pytest.mark.parametrize("debias", [True, False])
def test_what_the_envelope_is_off_is_seen(debias):
    norms = torch.rand(200, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    factors = prox_group_envelope(norms, 20.0, 0.5, debias=debias)
    assert off_envelope(factors, 20.0, 0.5, debias=debias)["off"] < 1e-9
    assert off_envelope(factors, 25.0, 0.5, debias=debias)["off"] == pytest.approx(0.2)
