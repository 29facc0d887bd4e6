"""Transformers: heads, neurons and what pins the rest."""

import pytest
import torch
import wiring_transformers as nets
from wiring_oddities import Complex

from setpoint.wiring import check, derive

TOKENS = torch.randint(30, (2, 6), generator=torch.Generator().manual_seed(0))
VECTORS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))

HEADS, SHARED, QUERIES, NEURONS = ("head", 3), ("head", 3), ("head", 2), ("neuron", 20)
CASES = {
    "decoder": (nets.Decoder, TOKENS, [HEADS, NEURONS] * 2),
    "decoder, attention in steps": (lambda: nets.Decoder(False, False), TOKENS, [HEADS, NEURONS] * 2),
    # A key and value with its queries is a unit; so is one query of each of them, as that is free separately.
    "repeated keys": (lambda: nets.GroupedDecoder("repeat"), TOKENS, [SHARED, QUERIES, ("neuron", 10)]),
    "expanded keys": (lambda: nets.GroupedDecoder("expand", True), TOKENS, [SHARED, QUERIES, ("neuron", 10)]),
    "grouped queries": (lambda: nets.GroupedDecoder("sdpa"), TOKENS, [SHARED, QUERIES, ("neuron", 10)]),
    "heads in einsum": (nets.Einsum, VECTORS, [HEADS, ("other", 4)]),
    "complex rotary": (Complex, VECTORS, [HEADS]),
}


@pytest.mark.parametrize("case", CASES)
def test_groups_and_resized_models(case):
    build, inputs, groups = CASES[case]
    torch.manual_seed(0)
    model = build().eval()
    wiring = derive(model, inputs)
    assert [(group.kind, group.size) for group in wiring.groups] == groups
    check(model, wiring, inputs)


@pytest.mark.parametrize("case", ["decoder", "expanded keys"])
def test_the_stream_is_free_where_inexact_norms_are_accepted(case):
    build, inputs, groups = CASES[case]
    model = build().eval()
    wiring = derive(model, inputs, inexact_norms=True)
    assert [(group.kind, group.size) for group in wiring.groups] == [("hidden", 12), *groups]
    assert wiring.inexact == {"tokens"}
    check(model, wiring, inputs)


def test_heads_of_a_stacked_projection():
    wiring = derive(nets.Decoder(), TOKENS)
    group = wiring["blocks.0.attention.qkv"]
    (made,) = [s for s in group.slices if s.tensor == "blocks.0.attention.qkv.weight"]
    assert made.axis == 0
    assert made.index[1].tolist() == [4, 5, 6, 7, 16, 17, 18, 19, 28, 29, 30, 31]
    assert {(a.module, a.name) for a in wiring.attributes if group.name in a.layout.groups} == {
        ("blocks.0.attention", "heads"), ("blocks.0.attention", "inner")}  # fmt: skip


def test_attributes_follow_the_heads():
    model = nets.Decoder().eval()
    derive(model, TOKENS).resize(model, {"blocks.0.attention.qkv": torch.tensor([0, 2])})
    attention = model.blocks[0].attention
    assert (attention.heads, attention.head_width, attention.inner) == (2, 4, 8)
    assert (attention.qkv.out_features, attention.out.in_features) == (24, 8)
    assert model.blocks[1].attention.heads == 3
    assert model(TOKENS).shape == (2, 6, 30)


def test_rotary_positions_pin_the_width_but_not_the_heads():
    reasons = {p.reason for p in derive(nets.GroupedDecoder("sdpa"), TOKENS).pinned if p.tensor == "attention.k.weight"}
    assert any("scores of attention" in reason for reason in reasons)


def test_a_tied_embedding_has_both_roles_and_stays_tied():
    model = nets.Decoder().eval()
    wiring = derive(model, TOKENS, inexact_norms=True)
    roles = [s.role for s in wiring["tokens"].slices if s.tensor == "tokens.weight"]
    assert roles == ["produces", "consumes"]
    assert wiring.aliases["tokens.weight"] == ("tokens.weight", "head.weight")
    wiring.resize(model, {"tokens": torch.arange(8)})
    assert model.head.weight is model.tokens.weight
    assert model.tokens.weight.shape == (30, 8)
    assert (model.head.in_features, model.tokens.embedding_dim) == (8, 8)
