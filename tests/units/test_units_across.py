"""Norms of units whose entries are far apart in memory, and products by unit, beside the way of all others."""

import pytest
import torch
from torch import nn

from setpoint.units import Layout, partition
from setpoint.units import kinds as module

LAYERS = {
    "linear": lambda: nn.Linear(70, 130),
    "convolution": lambda: nn.Conv2d(16, 24, 3),
    "grouped": lambda: nn.Conv2d(16, 24, 3, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(16, 24, 3),
    "transposed and grouped": lambda: nn.ConvTranspose2d(16, 24, 3, groups=4),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("unit", ["row", "column"])
@pytest.mark.parametrize("name", LAYERS)
def test_norms_are_the_same(monkeypatch, name, unit, dtype):
    layer = LAYERS[name]().to(dtype)
    weight = layer.weight.detach()
    units = partition(unit, Layout.of(layer, weight))
    plain = units.magnitudes(weight)
    monkeypatch.setattr(module, "WORTH", 0)
    found = units.magnitudes(weight)
    assert found.shape == plain.shape
    assert found.dtype == plain.dtype
    assert torch.allclose(found, plain, rtol=1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("unit", ["weight", "row", "column", "2x4", "2:4"])
@pytest.mark.parametrize("name", LAYERS)
def test_products_are_those_with_factors_spread(name, unit):
    layer = LAYERS[name]()
    weight = layer.weight.detach()
    units = partition(unit, Layout.of(layer, weight))
    factors = torch.rand(units.counts)
    asked = weight * units.expand(factors, weight)
    product = weight.clone()
    units.multiply(product, factors)
    assert torch.equal(product, asked)
    masked = weight.clone()
    units.multiply(masked, factors < 0.5)
    assert torch.equal(masked, weight * units.expand(factors < 0.5, weight))
