"""Models of the transformers library, from tiny configurations."""

import importlib.util
import sys

import pytest
import torch

from setpoint.wiring import check, derive


def library():
    """transformers, without torchvision where that is installed but broken."""
    find = importlib.util.find_spec
    try:
        importlib.import_module("torchvision")
    except Exception:
        sys.modules.pop("torchvision", None)
        importlib.util.find_spec = lambda name, *rest: None if name == "torchvision" else find(name, *rest)
    try:
        return pytest.importorskip("transformers")
    finally:
        importlib.util.find_spec = find


transformers = library()

TOKENS = torch.randint(60, (2, 7), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BERT = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 40, "max_position_embeddings": 16}  # fmt: skip
GPT2 = {"vocab_size": 60, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_inner": 40,
        "use_cache": False, "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
LLAMA = {"vocab_size": 60, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
         "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4, "use_cache": False}  # fmt: skip
VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
       "image_size": 8, "patch_size": 4}  # fmt: skip
# Of each layer: kind and size of its groups.
PLAIN = [("head", 4), ("neuron", 40)]
GROUPED = [("head", 3), ("head", 2), ("neuron", 40)]
CASES = {
    "BertModel": ("BertModel", "BertConfig", BERT, TOKENS, PLAIN),
    "BertForMaskedLM": ("BertForMaskedLM", "BertConfig", BERT, TOKENS, PLAIN),
    "GPT2LMHeadModel": ("GPT2LMHeadModel", "GPT2Config", GPT2, TOKENS, PLAIN),
    "LlamaForCausalLM": ("LlamaForCausalLM", "LlamaConfig", LLAMA, TOKENS, GROUPED),
    "ViTForImageClassification": ("ViTForImageClassification", "ViTConfig", VIT, IMAGES, PLAIN),
}


def build(case: str, attention: str = "sdpa") -> tuple[torch.nn.Module, torch.Tensor]:
    model, config, options, inputs, _ = CASES[case]
    torch.manual_seed(0)
    configuration = getattr(transformers, config)(**options, attn_implementation=attention)
    return getattr(transformers, model)(configuration).eval(), inputs


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
