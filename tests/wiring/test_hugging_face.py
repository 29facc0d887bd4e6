"""Models of the transformers library: heads and neurons, and the attributes that follow them."""

import pytest
import torch
from wiring_hugging_face import CASES, build

from setpoint.wiring import check, derive


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES)
def test_heads_and_neurons(case, attention):
    model, inputs = build(case, attention)
    wiring = derive(model, inputs)
    assert [(group.kind, group.size) for group in wiring.groups] == CASES[case][-1] * 2
    check(model, wiring, inputs)


@pytest.mark.parametrize("case", ["BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM"])
def test_the_stream_if_inexact_norms_are_accepted(case):
    model, inputs = build(case)
    wiring = derive(model, inputs, inexact_norms=True)
    assert [(group.kind, group.size) for group in wiring.groups] == [("hidden", 24), *CASES[case][-1] * 2]
    check(model, wiring, inputs)


def test_attributes_of_gpt2_follow():
    model, inputs = build("GPT2LMHeadModel")
    derive(model, inputs).resize(
        model, {"transformer.h.0.attn.c_attn": torch.tensor([0, 1, 3]), "transformer.h.0.mlp.c_fc": torch.arange(33)}
    )
    block = model.transformer.h[0]
    assert (block.attn.c_attn.nf, block.attn.split_size, block.attn.num_heads) == (54, 18, 3)
    assert (block.attn.c_proj.nx, block.mlp.c_fc.nf, block.mlp.c_proj.nx) == (18, 33, 33)
    assert model(inputs).logits.shape == (2, 7, 60)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_attributes_of_llama_follow():
    model, inputs = build("LlamaForCausalLM")
    derive(model, inputs).resize(model, {"model.layers.1.self_attn.q_proj#2": torch.tensor([1])})
    attention = model.model.layers[1].self_attn
    assert attention.num_key_value_groups == 1
    assert (attention.q_proj.out_features, attention.k_proj.out_features) == (12, 12)
    assert model(inputs).logits.shape == (2, 7, 60)


def test_a_key_and_value_goes_with_its_queries():
    model, inputs = build("LlamaForCausalLM")
    group = derive(model, inputs)["model.layers.0.self_attn.q_proj"]
    index = {s.tensor.split(".")[-2]: s.index[1].tolist() for s in group.slices}
    assert index["k_proj"] == index["v_proj"] == [4, 5, 6, 7]
    assert index["q_proj"] == index["o_proj"] == list(range(8, 16))
