"""Compacted models of every family, and how they are trained on."""

import copy
import importlib.util
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from setpoint.recipes.models import build_model
from setpoint.wiring import derive

sys.path.append(str(Path(__file__).parent.parent / "wiring"))

TRUSTED = ("wiring_transformers", "transformers")
RECIPES = ("mlp", "lenet5", "convnet", "resnet20", "vgg16")


def leaves(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    with torch.no_grad():
        found = _pytree.tree_leaves(model(inputs))
    return [t for t in found if isinstance(t, Tensor)]


def train(model: nn.Module, inputs: Tensor) -> None:
    """Two steps, with dropout, in a way that only depends on the model."""
    torch.manual_seed(3)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        outputs = _pytree.tree_leaves(model(inputs))
        sum(t.square().mean() for t in outputs if isinstance(t, Tensor) and t.is_floating_point()).backward()
        optimizer.step()


def shrunk(model: nn.Module, inputs: Tensor) -> tuple[nn.Module, nn.Module, Tensor]:
    """A model without every third unit of all groups, the model itself, and inputs."""
    wiring = derive(model, inputs)
    small = copy.deepcopy(model)
    numbers = {g.name: torch.arange(g.size) for g in wiring.groups}
    wiring.resize(small, {name: n[n % 3 != 1] if len(n) > 1 else n for name, n in numbers.items()})
    return small, model, inputs


def recipe(name: str):
    def build():
        torch.manual_seed(0)
        model = build_model(name, shape=(3, 32, 32), classes=10, width=0.25)
        # Not where a strided 1x1 convolution comes to have few channels: see `with_channels_last` of the recipes.
        if name != "resnet20":
            model = model.to(memory_format=torch.channels_last)
        return shrunk(model, torch.randn(2, 3, 32, 32))

    return build


def sequential():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(8, 9), nn.Sequential(nn.Tanh(), nn.Linear(9, 12), nn.Dropout(0.2)), nn.ReLU())
    return shrunk(nn.Sequential(inner, nn.Sequential(nn.Linear(12, 4))), torch.randn(3, 8))


def decoder():
    from wiring_transformers import Decoder

    torch.manual_seed(0)
    return shrunk(Decoder(fused=False), torch.randint(30, (2, 7)))


def gpt():
    torch.manual_seed(0)
    return shrunk(build_model("gpt", shape=(16,), classes=30, width=0.25), torch.randint(30, (2, 7)))


def hugging_face(case: str):
    def build():
        from test_hugging_face import build as build_case

        torch.manual_seed(0)
        return shrunk(*build_case(case))

    return build


FAMILIES = {name: recipe(name) for name in RECIPES} | {"sequential": sequential, "decoder": decoder, "gpt": gpt}
if importlib.util.find_spec("transformers") is not None:
    for name, case in {
        "bert": "BertModel",
        "gpt2": "GPT2LMHeadModel",
        "llama": "LlamaForCausalLM",
        "vit": "ViTForImageClassification",
    }.items():
        FAMILIES[name] = hugging_face(case)
