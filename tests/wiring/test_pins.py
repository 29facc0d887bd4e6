"""What may happen to an axis, what pins it, and the words in which that is said."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from wiring_cnns import GroupNormed, PaddedResNet
from wiring_oddities import FINE, PINNING, Adapted, Contexts, Pair
from wiring_transformers import Plain

from setpoint.wiring import check, derive, explain, register_leaf
from setpoint.wiring.check import clear
from setpoint.wiring.leaves import _OPAQUE

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", FINE)
def test_what_an_axis_may_go_through(case):
    between, width, read = FINE[case]
    model = Pair(between, width, read)
    wiring = derive(model, X)
    assert [group.name for group in wiring.groups] == ["first"]
    check(model, wiring, X)


@pytest.mark.parametrize("case", PINNING)
def test_what_pins_an_axis_and_why(case):
    between, width, read, reason = PINNING[case]
    wiring = derive(Pair(between, width, read), X)
    assert not wiring.groups
    pins = [p for p in wiring.pinned if (p.tensor, p.axis) == ("first.weight", 0)]
    assert any(p.reason.startswith(reason) for p in pins), pins


def test_what_is_left_of_an_axis_by_a_slice_is_free():
    model = Pair(lambda y: torch.cat([y[:, :2].relu(), y[:, 2:]], dim=1))
    wiring = derive(model, X)
    (group,) = wiring.groups
    assert group.size == 4
    assert group.slices[0].index.tolist() == [[2], [3], [4], [5]]
    assert {(p.tensor, p.axis) for p in wiring.pinned} >= {("first.weight", 0)}
    check(model, wiring, X)


@pytest.mark.parametrize("build", [Adapted, Contexts, Plain])
def test_parameters_without_modules_and_graphs_in_graphs(build):
    model = build()
    wiring = derive(model, X)
    names = {Adapted: {"inner", "up", "weight"}, Contexts: {"first"}, Plain: {"first"}}[build]
    assert {group.name for group in wiring.groups} == names
    check(model, wiring, X)


def test_tensors_that_nothing_reads():
    wiring = derive(Plain(), X)
    assert {p.reason for p in wiring.pinned if p.tensor.startswith("unread")} == {"no operator reads it"}
    # The bias of a layer of which only the weight is read shares the weight's axis.
    assert {p.reason for p in wiring.pinned if p.tensor == "lonely.bias"} == {"'sum' reduces it"}


def test_an_unread_bias_shrinks_with_its_weight():
    class Lonely(Pair):
        def forward(self, x):
            return self.second(nn.functional.linear(x, self.first.weight))

    model = Lonely()
    derive(model, X).resize(model, {"first": torch.tensor([0, 5])})
    assert model.first.bias.shape == (2,)


def test_kernels_that_are_computed_from_the_input_pin_what_they_sum_over():
    class Dynamic(nn.Module):
        def __init__(self):
            super().__init__()
            self.made, self.kernels, self.last = nn.Conv2d(3, 4, 1), nn.Linear(3, 5 * 4), nn.Conv2d(5, 2, 1)

        def forward(self, x):
            kernels = self.kernels(x.mean((0, 2, 3))).view(5, 4, 1, 1)
            return self.last(nn.functional.conv2d(self.made(x), kernels))

    wiring = derive(Dynamic(), torch.randn(2, 3, 4, 4))
    assert not wiring.groups
    (pin,) = [p for p in wiring.pinned if (p.tensor, p.axis) == ("made.weight", 0)]
    assert pin.reason in ("two activations are multiplied and summed over it", "size written as a number in 'view'")


def test_a_module_called_twice_shares_its_axes():
    wiring = derive(Plain(), X)
    tensors = {(s.tensor, s.axis) for s in wiring["first"].slices}
    assert {("shared.weight", 0), ("shared.weight", 1), ("shared.bias", 0), ("scale", 0)} <= tensors


class Computed(Pair):
    """What happens to the hidden units involves weights that are computed."""

    def __init__(self, hidden):
        super().__init__()
        self.hidden, self.scale = hidden, nn.Parameter(torch.rand(6) + 0.1)

    def forward(self, x):
        return self.hidden(self, self.first(x))


# Zeros of the parameters are zeros of what reads the units, and nothing is divided by them.
KEEPING = {
    "scaled": lambda m, y: F.linear(y, m.second.weight * 2.0),
    "scaled by a weight": lambda m, y: F.linear(y, m.second.weight * (m.scale + 1.0)),
    "squashed": lambda m, y: F.linear(y, m.second.weight.tanh().clamp(-0.5, 0.5)),
    "squared": lambda m, y: F.linear(y, m.second.weight**2 + m.second.weight),
    "divided by more": lambda m, y: m.second(y / (m.scale.abs() + 1.0)),
    "divided by a bound": lambda m, y: m.second(y / m.scale.clamp_min(0.05)),
}
LOSING = {
    "exponential": (lambda m, y: F.linear(y, m.second.weight.exp()), "what reads it is computed from parameters"),
    "shifted": (lambda m, y: F.linear(y, m.second.weight + 1.0), "what reads it is computed from parameters"),
    "filled": (lambda m, y: F.linear(y, torch.ones_like(m.second.weight)), "what reads it is computed from parameters"),
    "bounded": (lambda m, y: F.linear(y, m.second.weight.clamp_min(0.1)), "what reads it is computed from parameters"),
    "divided": (lambda m, y: m.second(y / m.scale), "'div' of its parameter's zeros is not finite"),
    "inverse": (lambda m, y: m.second(y * m.scale.rsqrt()), "'rsqrt' of its parameter's zeros is not finite"),
    "negative power": (lambda m, y: m.second(y * m.scale**-1), "'pow' of its parameter's zeros is not finite"),
}


@pytest.mark.parametrize("case", KEEPING)
def test_computed_weights_that_keep_zeros(case):
    model = Computed(KEEPING[case])
    wiring = derive(model, X)
    assert [group.size for group in wiring.groups] == [6]
    masked, kept = copy.deepcopy(model), torch.tensor([0, 2, 3])
    clear(masked, wiring.groups[0], torch.tensor([1, 4, 5]))
    wiring.resize(model, {wiring.groups[0].name: kept})
    assert torch.allclose(model(X), masked(X), atol=1e-6)


@pytest.mark.parametrize("case", LOSING)
def test_computed_weights_that_do_not_keep_zeros_pin_what_they_read(case):
    hidden, reason = LOSING[case]
    model = Computed(hidden)
    wiring = derive(model, X)
    assert not wiring.groups
    reasons = [p.reason for p in wiring.pinned if (p.tensor, p.axis) == ("first.weight", 0)]
    assert any(r.startswith(reason) for r in reasons), reasons


def test_layers_called_again_in_their_order_still_have_neurons():
    class Repeated(Pair):
        def forward(self, x):
            for _ in range(3):
                x = x + nn.functional.pad(self.second(self.first(x).relu()), (0, 1))
            return x

    model = Repeated()
    wiring = derive(model, X)
    assert [(group.name, group.kind) for group in wiring.groups] == [("first", "neuron")]
    check(model, wiring, X)


@pytest.mark.parametrize("derived", [False, True])
def test_a_leaf_of_the_users_own(derived):
    class Secret(nn.Linear):
        pass

    class Deeper(Secret):
        pass

    model = nn.Sequential(nn.Linear(4, 6), (Deeper if derived else Secret)(6, 6), nn.Linear(6, 2))
    assert len(derive(model, X).groups) == 2
    register_leaf("Secret", "it is not to be looked into")
    try:
        wiring = derive(model, X)
    finally:
        _OPAQUE.pop("Secret")
    assert not wiring.groups
    pins = {(p.module, p.reason) for p in wiring.pinned if p.tensor == "0.weight" and p.axis == 0}
    assert pins == {("1", "Secret: it is not to be looked into")}


def test_an_explanation_names_groups_sizes_modules_and_reasons():
    text = explain(PaddedResNet(), torch.randn(2, 3, 8, 8))
    assert text.startswith("4 groups of units may change:")
    assert "blocks.1.conv1: 16 of kind channel, in blocks.1.conv1.weight axis 0" in text
    assert "padding on this axis in blocks.1: conv.weight axis 0" in text
    text = explain(GroupNormed(), torch.randn(2, 3, 6, 6))
    assert "norm1.num_groups is the size of conv1" in text
    assert "'group_norm' averages over it in norm2: conv2.weight axis 0" in text


def test_a_model_that_cannot_be_exported_is_refused():
    class Branching(Pair):
        def forward(self, x):
            return self.first(x) if x.sum() > 0 else -self.first(x)

    with pytest.raises(ValueError, match=r"torch\.export cannot trace the model"):
        derive(Branching(), X)
