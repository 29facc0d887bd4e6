"""Modules of torch beyond linear layers and convolutions: each follows, or is refused with its reason."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import setpoint
from setpoint.wiring import check, derive

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(10, (4, 3), generator=torch.Generator().manual_seed(0))
OPTIONS = {"d_model": 8, "nhead": 2, "dim_feedforward": 16, "batch_first": True}


def encoder_layer(**options) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(**OPTIONS, **options)


class Masked(nn.Module):
    """Padding is told by a mask, which takes other ways through the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(encoder_layer(), 2)

    def forward(self, x):
        return self.encoder(x, src_key_padding_mask=x[..., 0] > 1)


ATTENTION = {
    "encoder layer": (encoder_layer, (X,), ["linear1"]),
    "norm first": (lambda: encoder_layer(norm_first=True, activation="gelu"), (X,), ["linear1"]),
    "decoder layer": (lambda: nn.TransformerDecoderLayer(**OPTIONS), (X, X), ["linear1"]),
    "encoder": (lambda: nn.TransformerEncoder(encoder_layer(), 2), (X,), ["layers.0.linear1", "layers.1.linear1"]),
    "padded": (Masked, (X,), ["encoder.layers.0.linear1", "encoder.layers.1.linear1"]),
    "both": (
        lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
        (X, X),
        ["encoder.layers.0.linear1", "decoder.layers.0.linear1"],
    ),
}


@pytest.mark.parametrize("mode", ["training", "evaluation", "no gradients"])
@pytest.mark.parametrize("case", ATTENTION)
def test_neurons_beside_attention_in_every_mode(case, mode):
    build, inputs, names = ATTENTION[case]
    model = build().train(mode == "training")
    with torch.set_grad_enabled(mode != "no gradients"):  # without, evaluation mode takes a way of one operator
        wiring = derive(model, inputs)
    assert [(group.name, group.kind, group.size) for group in wiring.groups] == [(n, "neuron", 16) for n in names]
    pins = {p.module: p.reason for p in wiring.pinned if p.tensor.endswith("in_proj_weight")}
    assert all(reason.startswith("MultiheadAttention: its heads times their width") for reason in pins.values())
    assert all("possible: " in reason for reason in pins.values())
    assert all(module.endswith("attn") for module in pins)
    if mode == "no gradients":
        check(model, wiring, inputs)


@pytest.mark.parametrize("cost", ["params", "flops"])
def test_neurons_beside_attention_go(cost):
    torch.manual_seed(0)
    model = nn.TransformerEncoder(encoder_layer(), 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    target = setpoint.Target(**{cost: 0.8})
    sparsifier = setpoint.Sparsifier(
        model, optimizer, method="magnitude", target=target, unit="neuron", steps=4, example_inputs=X
    )
    for _ in range(4):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    assert sparsifier.report().exact
    small = setpoint.compact(sparsifier, X).eval()
    assert sum(layer.linear1.out_features for layer in small.layers) < 32
    with torch.no_grad():
        assert torch.allclose(small(X), model.eval()(X), atol=1e-5)


def test_attention_keeps_the_width_that_is_added_to_it():
    model = nn.Sequential(nn.Linear(8, 8), encoder_layer(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    wiring = derive(model, X, inexact_norms=True)
    assert [group.name for group in wiring.groups] == ["1.linear1", "2"]
    assert {p.reason.partition(":")[0] for p in wiring.pinned if p.tensor == "2.weight" and p.axis == 1} == {
        "MultiheadAttention"
    }


class Derived(nn.MultiheadAttention):
    pass


class Functional(nn.Module):
    """Attention by torch's function, with weights of its own."""

    def __init__(self, **_) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, query, key, value):
        bias = torch.cat([self.q.bias, self.k.bias, self.v.bias])
        return nn.functional.multi_head_attention_forward(
            query, key, value, query.shape[-1], 2, None, bias, None, None, False, 0.0, self.out.weight, self.out.bias,
            use_separate_proj_weight=True, q_proj_weight=self.q.weight, k_proj_weight=self.k.weight,
            v_proj_weight=self.v.weight,
        )  # fmt: skip


@pytest.mark.parametrize("kind", [nn.MultiheadAttention, Derived, Functional])
def test_attention_by_torchs_function_is_refused(kind):
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.attention = nn.Linear(8, 8), kind(embed_dim=8, num_heads=2)
            self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            y = self.first(x)
            return self.down(self.up(self.attention(y, y, y)[0]))

    model = Around()
    wiring = derive(model, X)
    assert [group.name for group in wiring.groups] == ["up"]
    reasons = {p.reason for p in wiring.pinned if (p.tensor, p.axis) == ("first.weight", 0)}
    assert any(reason.startswith("MultiheadAttention: its heads") for reason in reasons)
    check(model, wiring, X)


class Bags(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bags, self.out = nn.EmbeddingBag(10, 6, mode=mode), nn.Linear(6, 3)

    def forward(self, tokens):
        return self.out(self.bags(tokens))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_embeddings(mode):
    model = Bags(mode)
    wiring = derive(model, TOKENS)
    assert [(group.name, group.kind, group.size) for group in wiring.groups] == [("bags", "hidden", 6)]
    check(model, wiring, TOKENS)
    wiring.resize(model, {"bags": torch.tensor([0, 3])})
    assert (model.bags.num_embeddings, model.bags.embedding_dim) == (10, 2)
    assert model(TOKENS).shape == (4, 3)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_embeddings_of_bounded_norm_are_refused(kind):
    wiring = derive(nn.Sequential(kind(10, 6, max_norm=1.0), nn.Linear(6, 3)), TOKENS)
    assert not wiring.groups
    assert "the norm over it is bounded by max_norm" in {p.reason for p in wiring.pinned if p.tensor == "0.weight"}


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.both = nn.Linear(8, 6), nn.Linear(8, 7), nn.Bilinear(6, 7, 5)
        self.square, self.out = nn.Bilinear(5, 5, 4), nn.Linear(4, 2)

    def forward(self, x):
        y = torch.relu(self.both(self.first(x), self.second(x)))
        return self.out(self.square(y, y))


def test_bilinear_layers():
    model = Bilinear()
    wiring = derive(model, X)
    sizes = {"first": 6, "second": 7, "both": 5, "square": 4}
    assert {group.name: group.size for group in wiring.groups} == sizes
    assert {group.kind for group in wiring.groups} == {"neuron"}
    check(model, wiring, X)
    wiring.resize(model, {"first": torch.arange(2), "second": torch.arange(3), "both": torch.arange(4)})
    assert (model.both.in1_features, model.both.in2_features, model.both.out_features) == (2, 3, 4)
    assert (model.square.in1_features, model.square.in2_features, model.square.out_features) == (4, 4, 4)


@pytest.mark.parametrize(("slopes", "left"), [(6, 2), (1, 1)])
def test_slopes_of_prelu(slopes, left):
    model = nn.Sequential(nn.Linear(8, 6), nn.PReLU(slopes), nn.Linear(6, 3))
    wiring = derive(model, X[0])
    assert [group.size for group in wiring.groups] == [6]
    check(model, wiring, X[0])
    wiring.resize(model, {"0": torch.tensor([1, 4])})
    assert model[1].num_parameters == len(model[1].weight) == left
    assert model(X[0]).shape == (5, 3)


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal"])
@pytest.mark.parametrize("place", [0, 2])
def test_parametrized_weights_are_refused_until_they_are_weights(kind, place):
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    getattr(parametrizations, kind)(model[place])
    wiring = derive(model, X)
    assert not wiring.groups
    pins = {p.module: p.reason for p in wiring.pinned if p.tensor.startswith(f"{place}.param")}
    assert f"{place}.parametrizations.weight.0" in pins
    assert all("remove_parametrizations" in reason for reason in pins.values())
    parametrize.remove_parametrizations(model[place], "weight")
    assert [group.size for group in derive(model, X).groups] == [6]


def test_weight_norm_by_hooks_is_refused():
    model = nn.Sequential(nn.Linear(8, 6), nn.utils.weight_norm(nn.Linear(6, 3)))
    wiring = derive(model, X)
    assert not wiring.groups
    assert "the operator '_weight_norm' is not understood" in {p.reason for p in wiring.pinned}
