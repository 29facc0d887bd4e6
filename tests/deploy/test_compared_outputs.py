"""Compared outputs: rounding passes, faults do not."""

import copy

import pytest
import torch
from torch import nn

import setpoint
from setpoint.deploy.compact import compare_outputs

X = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


def deep(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(16, 16), nn.Tanh())]
    return nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 16), *layers).to(dtype)


class Scaled(nn.Module):
    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.tensor(factors))

    def forward(self, x):
        return x * self.factors[0] * self.factors[1]


def test_rounding_is_told_from_a_fault():
    first, second = Scaled(0.3, 0.7).bfloat16(), Scaled(0.7, 0.3).bfloat16()
    x = X.bfloat16()
    with torch.no_grad():
        assert float((first(x) - second(x)).abs().max() / first(x).abs().max()) > 1e-5
    compare_outputs(first, second, x)
    with pytest.raises(RuntimeError, match="the smaller model's outputs differ"):
        compare_outputs(first, Scaled(0.7, 0.31).bfloat16(), x)


def test_outputs_that_are_not_finite_are_a_fault():
    model, broken = deep(), deep()
    with torch.no_grad():
        broken[0].bias[0] = float("nan")
    with pytest.raises(RuntimeError, match="by inf of their size"):
        compare_outputs(model, broken, X)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arguments_by_name_in_any_precision(dtype):
    model = deep(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs = {"input": X.to(dtype)}
    sparsifier = setpoint.Sparsifier(
        model, optimizer, method="magnitude", target=0.5, unit="neuron", steps=4, example_inputs=inputs
    )
    for _ in range(4):
        optimizer.zero_grad()
        model(**inputs).square().mean().backward()
        optimizer.step()
    before = copy.deepcopy(model.state_dict())
    small = setpoint.compact(sparsifier, inputs)
    assert small[0].out_features < 256
    assert small[0].weight.dtype == dtype
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
