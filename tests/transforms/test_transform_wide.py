"""Widening along the wiring: sizes, first weights, growth that keeps the function, and what is refused."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from transform_nets import IMAGES, SMALL, TOKENS, LanguageModel, Residual

from setpoint.recipes.models import build_model
from setpoint.recipes.models.densenet import DenseNet
from setpoint.transforms import sparse_ift, wide
from setpoint.wiring import derive
from wiring.wiring_cnns import GroupNormed, PaddedResNet, Shuffled
from wiring.wiring_transformers import GroupedDecoder

SMALLER = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def answers(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(inputs)


@pytest.mark.parametrize(
    ("build", "inputs", "sparsity"),
    [
        (Residual, SMALL, 0.5),
        (Residual, SMALL, 0.75),
        (lambda: build_model("mobilenetv2", shape=(3, 16, 16), classes=5, width=0.25), SMALLER, 0.9),
        (lambda: DenseNet((3, 16, 16), 5, 10, width=1 / 3), SMALLER, 0.75),
        (lambda: Shuffled(groups=2), SMALLER, 0.75),
        (lambda: build_model("resnet20", shape=(3, 12, 12), classes=10, width=0.5), SMALL, 0.5),
        (LanguageModel, TOKENS, 0.75),
        (lambda: GroupedDecoder("expand", True), TOKENS % 30, 0.75),
    ],
)
def test_growth_keeps_the_function(build, inputs, sparsity):
    torch.manual_seed(0)
    model = build()
    result = sparse_ift(model, "wide", sparsity, example_inputs=inputs, initialise="grow")
    one, other = answers(model, inputs), answers(result.model, inputs)
    assert float((one - other).abs().max()) <= 1e-5 * float(one.abs().max())
    assert result.parameters > 1.5 * result.dense_parameters


def test_sizes_of_everything_that_an_axis_runs_through():
    made = sparse_ift(Residual(), "wide", 0.75, example_inputs=SMALL).model
    assert made.stem.weight.shape == (16, 3, 3, 3)
    assert made.norm.num_features == len(made.norm.running_mean) == 16
    assert made.conv1.weight.shape == (24, 16, 3, 3)
    assert made.skip.weight.shape == (24, 16, 1, 1)
    assert (made.depthwise.weight.shape, made.depthwise.groups) == ((24, 1, 3, 3), 24)
    # Of a product, the channels of a group grow and not the groups.
    assert (made.grouped.weight.shape, made.grouped.groups) == ((32, 12, 3, 3), 2)
    assert (made.fc1.weight.shape, made.fc2.weight.shape) == ((40, 32), (5, 40))


def test_heads_neurons_and_the_stream_of_a_language_model():
    made = sparse_ift(LanguageModel(), "wide", 0.75, example_inputs=TOKENS).model
    attention = made.blocks[0].attention
    assert (attention.heads, attention.head_width, attention.inner) == (8, 12, 96)
    assert attention.qkv.weight.shape == (288, 96)
    assert (made.blocks[0].mlp[0].weight.shape, made.blocks[1].mlp[2].weight.shape) == ((192, 96), (96, 192))
    assert (made.tokens.weight.shape, made.places.weight.shape) == ((64, 96), (16, 96))
    assert (made.norm.normalized_shape, made.head.weight.shape) == ((96,), (64, 96))


def test_of_shared_heads_and_their_queries_the_heads_grow():
    made = sparse_ift(GroupedDecoder("sdpa"), "wide", 0.75, example_inputs=TOKENS % 30).model
    assert made.attention.q.weight.shape == (2 * 24, 2 * 12)
    assert made.attention.k.weight.shape == (2 * 12, 2 * 12)


def test_first_and_last_layers_stay_dense():
    result = sparse_ift(Residual(), "wide", 0.75, example_inputs=SMALL)
    assert result.left_dense == {
        "stem.weight": "it reads the model's input",
        "fc2.weight": "it makes the model's output",
    }
    inner = [f"{n}.weight" for n in ("conv1", "conv2", "skip", "depthwise", "grouped", "fc1")]
    assert [layer.name for layer in result.layers] == inner


def test_first_weights_are_drawn_for_the_new_sizes():
    torch.manual_seed(0)
    model = build_model("resnet20", shape=(3, 32, 32), classes=10)
    nn.init.zeros_(model.layer1[0].bn2.weight)
    nn.init.constant_(model.layer1[1].bn1.bias, 0.5)
    made = sparse_ift(model, "wide", 0.75, example_inputs=IMAGES[:1]).model
    weight = made.layer2[1].conv1.weight.detach()
    # As the model itself draws: normal, by the fan out.
    assert float(weight.std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)
    assert float(weight.abs().max()) > 2 * 3**0.5 * float(weight.std()) * 0.9
    assert len(weight.flatten().unique()) > 0.99 * weight.numel()
    assert float(made.fc.weight.detach().abs().max()) == pytest.approx(1 / 128**0.5, rel=0.05)
    # What was one value all over keeps it.
    assert bool((made.layer1[0].bn2.weight == 0).all())
    assert bool((made.layer1[1].bn1.bias == 0.5).all())
    assert bool((made.layer1[1].bn1.weight == 1).all())


def test_parameters_that_no_module_draws_keep_their_mean_and_deviation():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.last = nn.Linear(6, 40), nn.Linear(40, 3)
            self.weight, self.scale = nn.Parameter(0.02 * torch.randn(40, 40) + 0.1), nn.Parameter(torch.ones(40))
            self.register_buffer("phases", torch.arange(40.0))

        def forward(self, x):
            x = torch.relu(self.stem(x)) + self.phases
            return self.last(torch.relu(self.scale * (x @ self.weight)))

    made = sparse_ift(Bare(), "wide", 0.75, example_inputs=torch.zeros(1, 6)).model
    assert made.weight.shape == (80, 80)
    assert float(made.weight.detach().mean()) == pytest.approx(0.1, abs=2e-3)
    assert float(made.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert len(made.weight.detach().flatten().unique()) > 6000
    assert bool((made.scale == 1).all())
    assert torch.equal(made.phases, torch.arange(40.0).repeat_interleave(2))


def test_a_function_may_draw():
    seen = []

    def draw(model):
        seen.append(model)
        nn.init.constant_(model.fc1.weight, 3.0)

    result = sparse_ift(Residual(), "wide", 0.75, example_inputs=SMALL, initialise=draw)
    assert seen == [result.model]
    assert bool((result.model.fc1.weight == 3).all())


def test_axes_can_be_chosen():
    neurons = sparse_ift(LanguageModel(), "wide", 0.75, example_inputs=TOKENS, include="*mlp.0")
    assert [la.name for la in neurons.layers] == [f"blocks.{i}.mlp.{j}.weight" for i in (0, 1) for j in (0, 2)]
    assert neurons.model.tokens.weight.shape == (64, 48)
    rest = sparse_ift(LanguageModel(), "wide", 0.75, example_inputs=TOKENS, exclude="*attention.qkv")
    assert rest.model.blocks[0].attention.qkv.weight.shape == (144, 96)
    assert rest.model.blocks[0].attention.heads == 4
    assert not any("qkv" in la.name for la in rest.layers)
    with pytest.raises(ValueError, match="no axis can be widened of those that were chosen"):
        sparse_ift(LanguageModel(), "wide", example_inputs=TOKENS, exclude=["*mlp*", "*attention*"])
    with pytest.raises(ValueError, match=r"include='conv9\*' matches no layer; possible: stem, conv1, "):
        sparse_ift(Residual(), "wide", example_inputs=SMALL, include="conv9*")


def test_tied_weights_stay_tied_and_are_not_grown_by_repeating():
    result = sparse_ift(LanguageModel(tied=True), "wide", 0.75, example_inputs=TOKENS)
    assert result.model.head.weight is result.model.tokens.weight
    assert result.model.head.weight.shape == (64, 96)
    with pytest.raises(ValueError, match="'tokens' is made and read by one tied weight"):
        sparse_ift(LanguageModel(tied=True), "wide", 0.75, example_inputs=TOKENS, initialise="grow")


def test_growth_by_a_norm_that_would_see_other_averages_is_refused():
    with pytest.raises(ValueError, match="a norm averages over the 48 units of 'tokens'"):
        sparse_ift(LanguageModel(), "wide", 0.5, example_inputs=TOKENS, initialise="grow")
    with pytest.raises(ValueError, match="a norm averages over"):
        sparse_ift(GroupNormed(), "wide", 0.6, example_inputs=SMALLER, initialise="grow")


def test_the_module_that_forbids_is_named():
    with pytest.raises(
        ValueError, match=r"axis 1 of 'blocks.0.conv1.weight' cannot be widened: padding on this axis, in "
    ):
        sparse_ift(PaddedResNet(), "wide", example_inputs=SMALLER)
    # The axes inside of the blocks are free, and can be named.
    result = sparse_ift(PaddedResNet(), "wide", example_inputs=SMALLER, include="blocks.*.conv1")
    assert result.model.blocks[1].conv1.weight.shape == (32, 8, 3, 3)
    assert result.model.blocks[1].conv2.weight.shape == (16, 32, 3, 3)
    assert result.flops <= result.dense_flops
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with pytest.raises(ValueError, match=r"MultiheadAttention: its heads times their width.* in 'self_attn'"):
        sparse_ift(layer, "wide", example_inputs=torch.zeros(2, 5, 8))


class Literal(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.last = nn.Linear(4, 12), nn.Linear(12, 12), nn.Linear(12, 2)

    def forward(self, x):
        return self.last(self.inner(self.stem(x)).view(-1, 3, 4).reshape(-1, 12))


def test_sizes_written_as_numbers_forbid_it():
    with pytest.raises(ValueError, match=r"axis 0 of 'inner.weight' cannot be widened: .* in 'the model itself'"):
        sparse_ift(Literal(), "wide", example_inputs=torch.zeros(1, 4))


def test_sizes_that_grow_by_no_whole_unit_are_refused():
    with pytest.raises(ValueError, match=r"'grouped' has 8 units of kind 'channel'; 1.054 times as many"):
        sparse_ift(Residual(), "wide", 0.1, example_inputs=SMALL, include="grouped")
    with pytest.raises(ValueError, match=r"no whole unit more: .*exclude='attention.q'.*higher sparsity"):
        sparse_ift(GroupedDecoder("sdpa"), "wide", 0.4, example_inputs=TOKENS % 30)


def test_first_and_last_layers_that_outgrow_the_budget_are_told():
    model = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    with pytest.raises(ValueError, match=r"what stays dense takes 944,800 operations .* of the 532,400"):
        sparse_ift(model, "wide", 0.75, example_inputs=torch.zeros(1, 784))


def test_a_wiring_that_is_not_what_it_seems_is_found_and_named(monkeypatch):
    def wrong(model, *args, **kwargs):
        honest = derive(model, *args, **kwargs)
        bias = dataclasses.replace(honest.layouts["norm1.bias"][0], group=None)
        return dataclasses.replace(honest, layouts={**honest.layouts, "norm1.bias": (bias,)})

    monkeypatch.setattr(wide, "derive", wrong)
    model = Residual()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="the wiring of 'conv1' is not what it seems: growing conv1"):
        sparse_ift(model, "wide", example_inputs=SMALL)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
