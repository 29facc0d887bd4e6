"""Resizing in place: what is kept, what follows, what is refused; and the self-check that finds a wrong wiring."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn
from wiring_cnns import inverted_residuals
from wiring_oddities import Pair

from setpoint.recipes.models.bottleneck import BottleneckResNet
from setpoint.wiring import Wiring, check, derive

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def bottlenecks():
    return BottleneckResNet((3, 16, 16), 5, (1, 1), 0.125)


def test_deriving_leaves_the_model_as_it_was():
    model = bottlenecks().train()
    model.conv1.weight.requires_grad_(False)
    model.layers[1].eval()
    before = {name: (id(t), t._version, t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    attributes = {name: dict(vars(m)) for name, m in model.named_modules()}
    wiring = derive(model, IMAGES)
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert (id(tensor), tensor._version) == before[name][:2]
        assert torch.equal(tensor, before[name][2])
    for name, module in model.named_modules():
        assert vars(module) == attributes[name]
        assert {k: type(v) for k, v in vars(module).items()} == {k: type(v) for k, v in attributes[name].items()}
    assert model.training
    assert not model.layers[1].training
    # A frozen parameter is resized like any other.
    assert any(s.tensor == "conv1.weight" for s in wiring["conv1"].slices)


def test_flags_dtypes_and_memory_formats_are_kept():
    model = inverted_residuals().to(torch.bfloat16).to(memory_format=torch.channels_last)
    model[0].weight.requires_grad_(False)
    wiring = derive(model, IMAGES.to(torch.bfloat16))
    old = model[2].layers[0].weight
    wiring.resize(
        model, {"0": torch.tensor([4, 1]), "1.layers.3": torch.tensor([3, 1, 2]), "2.layers.0": torch.arange(5)}
    )
    new = model[2].layers[0].weight
    assert new is not old
    assert isinstance(new, nn.Parameter)
    assert new.dtype == torch.bfloat16
    assert torch.equal(new, old[:5][:, [3, 1, 2]])
    assert not model[0].weight.requires_grad
    assert new.requires_grad
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    depthwise, norm = model[2].layers[3], model[2].layers[4]
    assert (depthwise.groups, depthwise.in_channels, depthwise.out_channels) == (5, 5, 5)
    assert norm.num_features == len(norm.running_mean) == 5
    assert model(IMAGES.to(torch.bfloat16)).shape == (2, 5)


def test_a_resized_model_can_be_derived_trained_and_reloaded():
    model = bottlenecks()
    derive(model, IMAGES).resize(
        model, {"conv1": torch.tensor([0, 1, 1, 5]), "layers.0.0.shortcut.conv": torch.arange(10)}
    )
    wiring = derive(model, IMAGES)
    assert (wiring["conv1"].size, wiring["layers.0.0.shortcut.conv"].size) == (4, 10)
    check(model, wiring, IMAGES)
    model(IMAGES).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    other = copy.deepcopy(model)
    other.load_state_dict(model.state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in bottlenecks().modules()]


def test_a_wiring_holds_no_model_and_can_be_stored():
    wiring = pickle.loads(pickle.dumps(derive(inverted_residuals(), IMAGES)))
    assert isinstance(wiring, Wiring)
    model = inverted_residuals()
    wiring.resize(model, {"0": torch.arange(3)})
    assert model(IMAGES).shape == (2, 5)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (torch.tensor([], dtype=torch.long), "n >= 1"),
        (torch.tensor([[1]]), "of shape"),
        (torch.tensor([1.0]), "float32"),
        (torch.ones(6, dtype=torch.bool), "bool"),
        (torch.tensor([0, 6]), "units 0 to 5"),
        (torch.tensor([-1]), "units 0 to 5"),
    ],
)
def test_selections_that_are_refused(selection, message):
    model = Pair()
    with pytest.raises(ValueError, match=message):
        derive(model, X).resize(model, {"first": selection})


def test_names_and_models_that_are_refused():
    wiring = derive(Pair(), X)
    with pytest.raises(KeyError, match="no group 'third'; possible: first"):
        wiring.resize(Pair(), {"third": torch.tensor([0])})
    with pytest.raises(ValueError, match=r"'first.weight' has shape \(7, 4\)"):
        wiring.resize(Pair(width=7), {"first": torch.tensor([0])})
    with pytest.raises(ValueError, match=r"'first.weight', which this model does not have"):
        wiring.resize(nn.Linear(2, 2), {"first": torch.tensor([0])})


def test_nothing_is_changed_when_a_resize_is_refused():
    wiring = derive(Pair(), X)
    model = Pair()
    model.second = nn.Linear(6, 4)
    with pytest.raises(ValueError, match="second"):
        wiring.resize(model, {"first": torch.tensor([0])})
    assert model.first.weight.shape == (6, 4)


@pytest.mark.parametrize("fault", ["order", "missing"])
def test_the_check_finds_a_wrong_wiring(fault):
    class Sorted(nn.Module):
        """Reads channels in another order than they are made in."""

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            y = self.first(x)
            return self.second(y.flip(-1) if fault == "order" else y)

    honest = derive(Pair(), X)
    wrong = honest
    if fault == "missing":
        layouts = {**honest.layouts, "first.bias": (dataclasses.replace(honest.layouts["first.bias"][0], group=None),)}
        wrong = dataclasses.replace(honest, layouts=layouts)
    with pytest.raises(AssertionError, match=r"growing first"):
        check(Sorted(), wrong, X)


def test_the_check_leaves_the_model_and_the_generator_alone():
    model = bottlenecks()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    check(model, derive(model, IMAGES), IMAGES)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
