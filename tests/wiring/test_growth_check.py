"""The check that growth by repeating units keeps what a model computes."""

import dataclasses

import pytest
import torch
from torch import nn
from wiring_transformers import Decoder

from setpoint.recipes.models.bottleneck import BottleneckResNet
from setpoint.recipes.models.mobilenet import MobileNetV2
from setpoint.wiring import Wiring, check_growth, derive

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(30, (2, 6), generator=torch.Generator().manual_seed(0))


def doubled(wiring: Wiring) -> dict[str, torch.Tensor]:
    return {g.name: torch.arange(g.size).repeat_interleave(2) for g in wiring.groups}


def without(wiring: Wiring, tensor: str) -> Wiring:
    """As if the first axis of a tensor belonged to no group."""
    layouts = {**wiring.layouts, tensor: (dataclasses.replace(wiring.layouts[tensor][0], group=None),)}
    return dataclasses.replace(wiring, layouts=layouts)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_works_in_any_dtype_and_leaves_the_generator_and_the_model(dtype):
    model = MobileNetV2((3, 16, 16), 5, 0.25).to(dtype).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wiring = derive(model, IMAGES.to(dtype))
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    check_growth(model, wiring, doubled(wiring), IMAGES.to(dtype))
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_a_model_insists_on_in_float32_is_checked_in_float32():
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.second(self.first(x).float())

    wiring = derive(Casts(), torch.zeros(1, 4))
    check_growth(Casts(), wiring, doubled(wiring), torch.randn(2, 4))
    with pytest.raises(ValueError, match="the wiring of 'first' is not what it seems"):
        check_growth(Casts(), without(wiring, "first.bias"), doubled(wiring), torch.randn(2, 4))


def test_a_tied_embedding_does_not_hide_a_fault_elsewhere():
    model = Decoder()
    wiring = derive(model, TOKENS, inexact_norms=True)
    check_growth(model, wiring, doubled(wiring), TOKENS)

    class Reversed(Decoder):
        def forward(self, tokens):
            for block in self.blocks:
                block.mlp[1].forward = lambda x: x.flip(-1)
            return super().forward(tokens)

    check_growth(Reversed(), wiring, {"tokens": doubled(wiring)["tokens"]}, TOKENS)
    uneven = torch.tensor([*range(20), 0, 0, 3])
    with pytest.raises(ValueError, match=r"the wiring of 'blocks.0.mlp.0' is .*: outputs differ"):
        check_growth(Reversed(), wiring, {**doubled(wiring), "blocks.0.mlp.0": uneven}, TOKENS)


def test_on_the_meta_device_shapes_are_compared():
    model, inputs = BottleneckResNet((3, 16, 16), 5, (1, 1), 0.125).to("meta"), IMAGES.to("meta")
    wiring = derive(model, inputs)
    check_growth(model, wiring, doubled(wiring), inputs)
    with pytest.raises(ValueError, match="the wiring of 'conv1' is not what it seems: growing conv1: the "):
        check_growth(model, without(wiring, "bn1.bias"), doubled(wiring), inputs)
