"""Models of the transformers library, from tiny configurations."""

import importlib.util
import sys
from functools import cache

import pytest
import torch


@cache
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
    configuration = getattr(library(), config)(**options, attn_implementation=attention)
    return getattr(library(), model)(configuration).eval(), inputs
