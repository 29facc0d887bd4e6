"""Cases that libraries which follow autograd's graph get wrong without a word, and one that they get right."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from wiring_cnns import PaddedResNet, Shuffled
from wiring_transformers import Decoder, GroupedDecoder

from setpoint.recipes.models import build_model
from setpoint.wiring import check, derive
from setpoint.wiring.check import clear

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(30, (2, 6), generator=torch.Generator().manual_seed(0))


def test_a_shortcut_that_pads_channels_pins_them_and_the_rest_still_resizes():
    model = PaddedResNet().eval()
    wiring = derive(model, IMAGES)
    padded = {p.tensor for p in wiring.pinned if p.reason == "padding on this axis" and p.module == "blocks.1"}
    assert {"conv.weight", "blocks.0.conv2.weight", "blocks.1.conv2.weight", "bn.running_var"} <= padded
    wiring.resize(model, {group.name: torch.arange(group.size // 2) for group in wiring.groups})
    assert model(IMAGES).shape == (2, 5)


@pytest.mark.parametrize("name", ["stem", "stem#2", "first", "first#2", "second", "expand"])
def test_grouped_convolutions_and_shuffles_lose_the_same_channels_in_every_group(name):
    torch.manual_seed(0)
    model, small = Shuffled().eval(), Shuffled().eval()
    small.load_state_dict(model.state_dict())
    group = derive(model, IMAGES)[name]
    kept = torch.randperm(group.size)[: group.size - 1]
    derive(small, IMAGES).resize(small, {name: kept})
    clear(model, group, torch.tensor([u for u in range(group.size) if u not in kept.tolist()]))
    torch.testing.assert_close(small(IMAGES), model(IMAGES), rtol=0, atol=1e-6)


def test_frozen_parameters_belong_to_their_groups():
    model = build_model("resnet20", shape=(3, 8, 8), classes=5, width=0.25).eval()
    model.conv1.requires_grad_(False)
    wiring = derive(model, IMAGES)
    check(model, wiring, IMAGES)
    wiring.resize(model, {"conv1": torch.tensor([0, 3])})
    assert model.conv1.weight.shape[0] == model.layer1[2].conv2.weight.shape[0] == 2
    assert not model.conv1.weight.requires_grad


def test_parameters_that_are_no_modules_keep_their_orientation():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.randn(6, 2))

        def forward(self, x):
            return F.linear(x, self.inner).relu() @ self.outer

    (group,) = derive(Functional(), torch.randn(4, 3)).groups
    assert [(s.tensor, s.axis, s.role) for s in group.slices] == [("inner", 0, "produces"), ("outer", 0, "consumes")]


def test_scalar_outputs_pin_what_they_sum():
    class Summed(Decoder):
        def forward(self, tokens):
            return self.tokens(tokens).sum()

    wiring = derive(Summed(tied=False), TOKENS)
    assert not wiring.groups
    assert ("tokens.weight", 1, "'sum' reduces it") in {(p.tensor, p.axis, p.reason) for p in wiring.pinned}


@pytest.mark.parametrize("way", ["repeat", "expand", "sdpa"])
def test_shared_keys_and_values_end_in_one_unit_with_their_queries(way):
    group = derive(GroupedDecoder(way), TOKENS)["attention.q"]
    index = {s.tensor: s.index[2].tolist() for s in group.slices}
    assert index["attention.k.weight"] == index["attention.v.weight"] == list(range(8, 12))
    assert index["attention.q.weight"] == index["attention.o.weight"] == list(range(16, 24))


@pytest.mark.parametrize("training", [True, False])
def test_no_gradient_is_needed_and_the_mode_stays(training):
    model = Decoder().train(training)
    with torch.no_grad():
        groups = derive(model, TOKENS).groups
    assert [g.name for g in groups] == [g.name for g in derive(model, TOKENS).groups]
    assert all(module.training is training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_residual_stages_are_as_torch_pruning_has_them():
    pruning = pytest.importorskip("torch_pruning")
    model = build_model("resnet20", shape=(3, 8, 8), classes=5, width=0.25)
    names = {module: name for name, module in model.named_modules()}
    graph = pruning.DependencyGraph().build_dependency(model, IMAGES)
    for group in derive(model, IMAGES).groups:
        root = model.get_submodule(group.name)
        theirs = graph.get_pruning_group(root, pruning.prune_conv_out_channels, [0])
        touched = {(names[d.target.module], "in_channels" in d.handler.__name__) for d, _ in theirs
                   if d.target.module in names}  # fmt: skip
        ours = {(s.tensor.rpartition(".")[0], s.role == "consumes") for s in group.slices}
        assert {(n, i) for n, i in touched if n != "fc"} == {(n, i) for n, i in ours if n != "fc"}
