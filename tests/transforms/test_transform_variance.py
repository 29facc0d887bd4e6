"""The first weights of sparse layers: as loud as the dense ones, whatever is masked and however they are composed."""

import copy
import math
import sys

import pytest
import torch
from torch import nn

import setpoint
from setpoint.methods import Static
from setpoint.recipes.models import build_model
from setpoint.transforms import sparse_ift

MODULE = sys.modules["setpoint.transforms.sparse_ift"]
KINDS = ("wide", "parallel", "factorized", "doped")


class Drawn(nn.Module):
    """Layers without norms, all drawn with one deviation."""

    def __init__(self, convolution=False):
        super().__init__()

        def layer(inputs, outputs):
            return nn.Conv2d(inputs, outputs, 3, padding=1) if convolution else nn.Linear(inputs, outputs)

        self.layers = nn.ModuleList([layer(8, 96), layer(96, 128), layer(128, 64), layer(64, 8)])
        self.reset_parameters()

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)

    def reset_parameters(self):
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=0.05)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def made(model, kind, sparsity=0.75, seed=0, **more):
    torch.manual_seed(seed)
    return sparse_ift(model, kind, sparsity, example_inputs=example(model), **more)


def example(model):
    first = next(p for p in model.parameters() if p.ndim > 1)
    return torch.zeros(1, first.shape[1], *([16, 16] if first.ndim == 4 else []))


def masked(result, seed=0):
    """The model as it is before the first step, with a mask that is drawn at random."""
    optimizer = torch.optim.SGD(result.model.parameters(), lr=0.1)
    asked = {"target": result.target, "scope": result.scope, "include": result.include}
    setpoint.Sparsifier(result.model, optimizer, method=Static(seed=seed), steps=10, **asked)
    return result.model


def loudness(layer, inputs):
    """Of a layer's output at the middle of an image, for inputs of variance 1."""
    with torch.no_grad():
        out = layer(inputs)
    return float((out[..., 4:12, 4:12] if out.ndim == 4 else out).square().mean())


@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sparse_layer_begins_with_the_variance_of_the_dense_one(kind, sparsity, convolution):
    torch.manual_seed(1)
    dense = Drawn(convolution)
    compare(dense, masked(made(dense, kind, sparsity)))


@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize(
    ("kind", "inner"),
    [("factorized", "norm"), ("factorized", "relu"), ("factorized", "norm-relu"), ("parallel", "relu")],
)
def test_so_does_one_with_an_activation_or_a_norm_inside(kind, inner, convolution):
    torch.manual_seed(1)
    dense = Drawn(convolution)
    # One mask more or less than another by a tenth, in a small network; their mean is looked at.
    compare(dense, *(masked(made(dense, kind, inner=inner), seed) for seed in range(6)), rel=0.15)


def test_what_a_norm_divides_out_inside_of_a_layer_is_left(monkeypatch):
    scaled = {kind: made(Drawn(), kind, inner="norm-relu") for kind in ("parallel", "factorized")}
    monkeypatch.setattr(MODULE, "keep_variance", lambda *_: None)
    for kind, result in scaled.items():
        plain, now = made(Drawn(), kind, inner="norm-relu").model.state_dict(), result.model.state_dict()
        changed = {name for name in plain if not torch.equal(plain[name], now[name])}
        assert changed == (set() if kind == "parallel" else {"layers.1.v.weight", "layers.2.v.weight"})
        assert not result.rates


def compare(dense, *models, rel=0.1):
    convolution = isinstance(dense.layers[0], nn.Conv2d)
    for i in (1, 2):
        old, new = dense.layers[i], [model.layers[i] for model in models]
        fan_in = math.prod(old.weight.shape[1:])
        width = next(p for p in new[0].parameters() if p.ndim > 1).shape[1]
        inputs = torch.randn(8 if convolution else 2_000, width, *([16, 16] if convolution else []))
        mean = sum(loudness(layer, inputs) for layer in new) / len(new)
        assert mean == pytest.approx(fan_in * 0.05**2, rel=rel)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_variance_of_first_weights_that_counts(kind):
    dense = Drawn()
    trained = copy.deepcopy(dense)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(3.0)
    one, other = (made(model, kind).model.state_dict() for model in (dense, trained))
    assert all(torch.allclose(one[name], other[name], rtol=1e-5) for name in one)


@pytest.mark.parametrize("kind", KINDS)
def test_where_a_norm_divides_the_scale_out_weights_stay_as_they_were_drawn(kind, monkeypatch):
    dense = build_model("resnet20", shape=(3, 16, 16), classes=10, width=0.5)
    scaled = made(dense, kind).model.state_dict()
    monkeypatch.setattr(MODULE, "keep_variance", lambda *_: None)
    plain = made(dense, kind).model.state_dict()
    assert all(torch.equal(scaled[name], plain[name]) for name in plain)


def test_what_the_user_draws_is_left_and_so_is_what_was_grown():
    def draw(model):
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.5)

    model = made(Drawn(), "wide", initialise=draw).model
    assert all(bool((p == 0.5).all()) for p in model.parameters())
    dense, inputs = Drawn(), torch.randn(4, 8)
    grown = made(dense, "wide", initialise="grow").model
    assert torch.allclose(grown(inputs), dense(inputs), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_is_where_it_would_be_without(kind, monkeypatch):
    made(Drawn(), kind)
    here = torch.get_rng_state()
    monkeypatch.setattr(MODULE, "keep_variance", lambda *_: None)
    made(Drawn(), kind)
    assert torch.equal(here, torch.get_rng_state())


def test_the_layers_of_a_transformer_begin_alike():
    dense = build_model("gpt", shape=(64,), classes=256, width=0.5)
    for kind in KINDS:
        torch.manual_seed(0)
        result = sparse_ift(dense, kind, 0.75, example_inputs=torch.zeros(1, 64, dtype=torch.int64))
        model = masked(result)
        for block, old in zip(model.blocks, dense.blocks):
            for name in ("attention.qkv", "attention.out", "up", "down"):
                new, before = block.get_submodule(name), old.get_submodule(name)
                width = next(p for p in new.parameters() if p.ndim > 1).shape[1]
                wanted = before.weight.shape[1] * float(before.weight.detach().square().mean())
                assert loudness(new, torch.randn(4_000, width)) == pytest.approx(wanted, rel=0.2), (kind, name)


def moved(layer, masks, inputs):
    """How far one step of Adam, with a gradient of one sign and the layer's rates, moves its outputs."""
    with torch.no_grad():
        before = layer(inputs)
        for name, parameter in layer.named_parameters():
            if parameter.ndim > 1:
                rate, mask = masks[name]
                parameter.add_(1e-6 * rate * mask)
        return float((layer(inputs) - before).double().mean())


@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
@pytest.mark.parametrize("kind", ["wide", "parallel"])
def test_a_step_of_adam_moves_an_output_as_far_as_the_dense_layers(kind, sparsity):
    result = made(Drawn(), kind, sparsity)
    model = masked(result)
    layer = model.layers[1]
    width = next(p for p in layer.parameters() if p.ndim > 1).shape[1]
    masks = {
        name: (result.rates[f"layers.1.{name}"], parameter != 0)
        for name, parameter in layer.named_parameters()
        if parameter.ndim > 1
    }
    assert moved(layer.double(), masks, torch.ones(1, width).double()) == pytest.approx(1e-6 * 96, rel=0.02)


def test_two_layers_in_a_row_keep_the_rate_of_one():
    for inner in ("linear", "norm", "relu"):
        assert not made(Drawn(), "factorized", inner=inner).rates
    # What is left of a doped layer adds up as much less as it has to make less of.
    doped = made(Drawn(), "doped").rates
    assert doped == {f"layers.{i}.layer.weight": pytest.approx(1.0) for i in (1, 2)}


@pytest.mark.parametrize("kind", KINDS)
def test_parameter_groups_hold_every_parameter_once_and_the_same_decay(kind):
    result = made(Drawn(), kind)
    groups = result.parameter_groups(1e-3, weight_decay=0.1)
    held = [p for group in groups for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(result.model.parameters()))
    names = {p: name for name, p in result.model.named_parameters()}
    for group in groups:
        for p in group["params"]:
            assert group["lr"] == pytest.approx(1e-3 * result.rates.get(names[p], 1.0))
            assert group["lr"] * group["weight_decay"] == pytest.approx(1e-4 if p.ndim > 1 else 0.0)
    torch.optim.AdamW(groups)


@pytest.mark.parametrize("kind", KINDS)
def test_norms_need_no_rates(kind):
    assert not made(build_model("resnet20", shape=(3, 16, 16), classes=10, width=0.5), kind).rates
