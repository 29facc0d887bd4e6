"""What is empty is taken out of a model of which no run is known."""

import pytest
import torch
from rebuilding import leaves
from torch import nn
from wiring_transformers import Decoder

import setpoint
from setpoint.deploy.compact import living_units
from setpoint.recipes.models.bottleneck import BottleneckResNet
from setpoint.units import layers_of
from setpoint.units.coupled import layer_of
from setpoint.wiring import derive

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(30, (2, 7), generator=torch.Generator().manual_seed(0))


def empty(model, inputs, fraction=3):
    """Zero every so-manieth unit of all groups; how many stay."""
    left = {}
    for group in derive(model, inputs).groups:
        factors = torch.ones(group.size)
        factors[1::fraction] = 0
        layer_of(model, group).multiply(factors)
        left[group.name] = int(factors.sum())
    return left


def bottlenecks():
    return BottleneckResNet((3, 16, 16), 5, (1, 1), 0.125)


@pytest.mark.parametrize(("build", "inputs"), [(bottlenecks, IMAGES), (Decoder, TOKENS)])
def test_empty_units_go_and_the_outputs_stay(build, inputs, tmp_path):
    torch.manual_seed(0)
    model = build()
    left = empty(model, inputs)
    small = setpoint.compact(setpoint.load_model(setpoint.save(model, tmp_path / "model.safetensors")), inputs)
    sizes = {group.name: group.size for group in derive(small, inputs).groups}
    assert sizes == left
    for found, expected in zip(leaves(small.eval(), inputs), leaves(model.eval(), inputs), strict=True):
        assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_a_unit_with_one_entry_stays_and_a_group_keeps_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(3, 4)
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias, model[2].weight):
            tensor.zero_()
        for tensor in (model[2].bias[:4], model[4].weight[:, :4]):
            tensor.zero_()
        model[2].bias[1] = 3
    kept = living_units(layers_of(model, derive(model, x), "neuron"))
    assert {name: units.tolist() for name, units in kept.items()} == {"0": [0], "2": [1, 4]}
    small = setpoint.compact(model, (x,))
    assert [tuple(m.weight.shape) for m in small if hasattr(m, "weight")] == [(1, 4), (2, 1), (2, 2)]
    assert torch.allclose(small(x), model(x))
    assert model[0].out_features == 6, "the model itself stays"


def test_a_model_without_example_inputs_is_refused():
    with pytest.raises(ValueError, match="pass example_inputs="):
        setpoint.compact(nn.Linear(2, 2))


def test_a_model_with_nothing_empty_stays_as_it_is():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    small = setpoint.compact(model, torch.randn(2, 4))
    assert small is not model
    assert repr(small) == repr(model)


def test_norms_of_a_run_that_was_frozen_just_now_keep_their_own_average():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = setpoint.Sparsifier(
        model, optimizer, target=0.5, unit="channel", example_inputs=IMAGES, steps=5, method="magnitude"
    )
    sparsifier.freeze()
    small = setpoint.compact(sparsifier, IMAGES)
    assert small[1].momentum == 0.1
    assert small[0].out_channels < 6
