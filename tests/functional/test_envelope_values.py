"""The envelope's map on magnitudes that are computed where they are looked at, beside the map on tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from setpoint.functional import envelope_prox, envelope_values, prox_group_envelope
from setpoint.functional.envelope_prox import prox_of_values
from setpoint.functional.values import Entries


@pytest.fixture(autouse=True, params=["as installed", "eager"])
def kernels(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envelope_prox, "WORTH", 0)
        if request.param == "eager":
            patch.setattr(envelope_values, "kernels", lambda: envelope_values._Eager)
        yield


def compared(entries, budget, strength, costs, metric, debias):
    values = [Entries(e, torch.tensor(1.0 + 0.3 * i, dtype=e.dtype)) for i, e in enumerate(entries)]
    tensors = [v.tensor() for v in values]
    asked = prox_group_envelope(tensors, budget, strength, costs, None, metric, debias=debias)
    found = prox_of_values(values, budget, strength, costs, None, metric, debias=debias)
    for old, new, m in zip(asked, found, tensors):
        new = torch.ones_like(old) if new is None else new if isinstance(new, torch.Tensor) else new.tensor()
        there = m > 0  # what is zero may have any factor
        assert torch.allclose(new[there], old[there], rtol=0, atol=3e-6)
        assert torch.equal(new[there] == 0, old[there] == 0)
        assert torch.equal(new[there] == 1, old[there] == 1)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 4),
    st.floats(0.02, 1.0),
    st.sampled_from([1e-4, 0.01, 0.3, 0.9, 1.0]),
    st.booleans(),
)
def test_factors_are_those_of_tensors(seed, layers, part, strength, debias):
    draw = torch.Generator().manual_seed(seed)
    pick = lambda n: int(torch.randint(n, (), generator=draw))  # noqa: E731

    def one():
        x = torch.randn([0, 1, 7, 500, 3000][pick(5)], generator=draw)
        return [x, (3 * x).round(), x * (torch.rand(len(x), generator=draw) < 0.3), 0.1 * x][pick(4)]

    entries = [one() for _ in range(layers)]
    costs = [torch.tensor([1.0, 2.0, 3.7][pick(3)], dtype=torch.float64) for _ in entries]
    budget = part * sum(float(c) * e.numel() for c, e in zip(costs, entries))
    metric = None if debias else [torch.tensor([0.5, 1.0, 2.0][pick(3)]) for _ in entries]
    if budget:
        compared(entries, budget, strength, costs, metric, debias)


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("kept", [0.01, 0.1, 0.6])
def test_many(kept, debias):
    torch.manual_seed(0)
    entries = [torch.randn(300_000), 0.2 * torch.randn(500, 400)]
    costs = [torch.tensor(1.0, dtype=torch.float64)] * 2
    for strength in (1e-3, 0.2, 1.0):
        compared(entries, kept * 500_000, strength, costs, None, debias)
