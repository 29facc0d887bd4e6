"""Convolutional networks: the groups that a person would find, and models that still compute the same when resized."""

import pytest
import torch
import wiring_cnns as nets
from torch import nn
from wiring_oddities import ChannelConvolution, ConvNextBlock

from setpoint.recipes.models import build_model
from setpoint.recipes.models.bottleneck import BottleneckResNet
from setpoint.recipes.models.densenet import DenseNet
from setpoint.wiring import check, derive


def recipe(name: str, side: int, width: float, channels: int = 3):
    return lambda: build_model(name, shape=(channels, side, side), classes=5, width=width), (channels, side, side)


def stages(*widths: int) -> list[int]:
    """Of a CIFAR ResNet: the stream of each stage, and what is inside each of its three blocks."""
    first, *others = widths
    return [first] * 4 + [w for width in others for w in [width] * 4]


CASES = {
    "lenet5": (*recipe("lenet5", 20, 0.2, 1), [4, 10, 100]),
    "resnet20": (*recipe("resnet20", 8, 0.25), stages(4, 8, 16)),
    "vgg16": (*recipe("vgg16", 32, 0.1), [6, 6, 13, 13, 26, 26, 26, 51, 51, 51, 51, 51, 51]),
    "wideresnet": (*recipe("wideresnet16-4", 8, 0.125), [2, 8, 8, 8, 16, 16, 16, 32, 32, 32]),
    # The padded stages are pinned, the insides of the blocks are free.
    "padded shortcuts": (nets.PaddedResNet, (3, 8, 8), [8, 16, 16, 32]),
    "bottleneck": (
        lambda: BottleneckResNet((3, 16, 16), 5, (2, 2), 0.125), (3, 16, 16), [8, 8, 8, 32, 8, 8, 16, 16, 64, 16, 16],
    ),
    "large bottleneck": (lambda: BottleneckResNet((3, 64, 64), 5, (1,), 0.125), (3, 64, 64), [8, 8, 8, 32]),
    # Whole groups of the grouped convolution, and channels inside all its groups at once, before and after.
    "grouped bottleneck": (
        lambda: BottleneckResNet((3, 16, 16), 5, (2,), 6 / 64, groups=3), (3, 16, 16), [6, 3, 2, 2, 24, 3, 2, 2],
    ),
    "inverted residuals": (nets.inverted_residuals, (3, 8, 8), [6, 8, 24, 24, 12]),
    "channel attention": (nets.Squeezed, (3, 8, 8), [8, 4, 12]),
    # Six layers put 4 channels each behind the first 5; transitions have all that there are.
    "densenet": (lambda: DenseNet((3, 8, 8), 5, 10, width=1 / 3), (3, 8, 8), [5, *[4] * 6, 13, 21]),
    "unet": (nets.UNet, (1, 8, 8), [4, 6, 8, 5, 7]),
    # Four groups come in, (4 x 2) channels of each go out; after the shuffle four others are groups.
    "shuffles": (nets.Shuffled, (3, 4, 4), [4, 4, 4, 2, 4, 3]),
    "group norm": (nets.GroupNormed, (3, 6, 6), [4]),
    "one and three dimensions": (nets.Mixed1d3d, (1, 2, 2, 2), [2, 3, 4, 5]),
    "along channels": (ChannelConvolution, (3, 6, 6), []),
    "convnext": (ConvNextBlock, (3, 8, 8), [16]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_groups_and_resized_models(case, training):
    build, shape, sizes = CASES[case]
    torch.manual_seed(0)
    model, x = build().train(training), torch.randn(2, *shape)
    wiring = derive(model, x)
    assert sorted(group.size for group in wiring.groups) == sorted(sizes)
    assert model.training is training
    if not training:
        check(model, wiring, x)


def test_channels_of_a_stage_with_all_that_depends_on_them():
    model = build_model("resnet20", shape=(3, 8, 8), classes=5, width=0.25)
    group = derive(model, torch.randn(2, 3, 8, 8))["layer2.0.conv2"]
    assert group.kind == "channel"
    assert {(s.tensor, s.axis, s.role) for s in group.slices if "layer2.0.bn2" in s.tensor} == {
        (f"layer2.0.bn2.{name}", 0, "scales") for name in ("weight", "bias", "running_mean", "running_var")
    }
    written = {s.tensor for s in group.slices if s.role == "produces"}
    assert written == {f"layer2.{i}.conv2.weight" for i in range(3)} | {"layer2.0.shortcut.conv.weight"}
    read = {(s.tensor, s.axis) for s in group.slices if s.role == "consumes"}
    assert read == {(f"{n}.weight", 1) for n in (
        "layer2.1.conv1", "layer2.2.conv1", "layer3.0.conv1", "layer3.0.shortcut.conv")}  # fmt: skip


def test_a_flattened_channel_is_read_in_all_its_positions():
    model = build_model("lenet5", shape=(1, 20, 20), classes=5, width=0.2)
    group = derive(model, torch.randn(2, 1, 20, 20))["conv2"]
    (read,) = [s for s in group.slices if s.tensor == "fc1.weight"]
    assert read.role == "consumes"
    assert read.index.tolist() == [list(range(4 * unit, 4 * unit + 4)) for unit in range(10)]


def test_a_unit_inside_a_grouped_convolution_is_the_same_channel_of_every_group():
    wiring = derive(nets.Shuffled(), torch.randn(2, 3, 4, 4))
    (made,) = [s for s in wiring["stem#2"].slices if s.tensor == "stem.weight"]
    assert made.index.tolist() == [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]]
    assert {(a.module, a.name): a.layout.groups for a in wiring.attributes}["", "groups"] == ("stem",)


def test_norms_that_average_leave_channels_free_if_that_is_accepted():
    model, x = nets.GroupNormed(), torch.randn(2, 3, 6, 6)
    wiring = derive(model, x, inexact_norms=True)
    assert sorted(group.size for group in wiring.groups) == [3, 4, 6]
    assert wiring.inexact == {"conv1#2", "conv2"}
    check(model, wiring, x)


def test_layer_norm_over_channels_if_that_is_accepted():
    model, x = ConvNextBlock(), torch.randn(2, 3, 8, 8)
    wiring = derive(model, x, inexact_norms=True)
    assert {g.name: g.size for g in wiring.groups} == {"stem": 8, "up": 16}
    check(model, wiring, x)
    wiring.resize(model, {"stem": torch.tensor([1, 2, 5])})
    assert model.depthwise.groups == model.depthwise.in_channels == model.depthwise.out_channels == 3
    assert model.norm.normalized_shape == (3,)
    assert model(x).shape == (2, 2)


def test_one_example_is_enough_for_batch_norms_in_training():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)).train()
    x = torch.randn(1, 3, 4, 4)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(x)
    assert [group.size for group in derive(model, x).groups] == [6]
    assert all(module.training for module in model.modules())


def test_norms_without_parameters_follow_too():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.InstanceNorm2d(6), nn.BatchNorm2d(6, affine=False), nn.Conv2d(6, 2, 1))
    x = torch.randn(2, 3, 4, 4)
    wiring = derive(model, x)
    check(model, wiring, x)
    wiring.resize(model, {"0": torch.tensor([1, 4])})
    assert model[1].num_features == model[2].num_features == 2
    assert model(x).shape == (2, 2, 4, 4)


def test_a_check_of_the_input_follows_and_weights_may_have_to_be_positive():
    class Strict(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.width = nn.Linear(4, 6), nn.Linear(6, 2), 6
            self.variance = nn.Parameter(torch.rand(6) + 0.1)

        def forward(self, x):
            y = self.first(x)
            if y.shape[-1] != self.width:
                raise ValueError("wrong width")
            return self.second(y * self.variance.sqrt())

    model, x = Strict(), torch.randn(3, 4)
    wiring = derive(model, x)
    check(model, wiring, x)
    assert [(a.name, a.layout.groups) for a in wiring.attributes] == [("width", ("first",))]


def test_kinds():
    wiring = derive(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(3, 4))
    assert [group.kind for group in wiring.groups] == ["neuron"]
