"""First and last layers, and the norm behind a layer, are found by what passes through what."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transform_nets import SMALL, TOKENS, LanguageModel, Residual, ResNet18

from setpoint.recipes.models.bottleneck import BottleneckResNet
from setpoint.transforms.flow import follow
from wiring.wiring_cnns import UNet
from wiring.wiring_transformers import Einsum, GroupedDecoder

VECTORS = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


class Backwards(nn.Module):
    """Registered in another order than called, and of one shape throughout."""

    def __init__(self):
        super().__init__()
        self.head, self.middle, self.stem = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        return self.head(F.relu(self.middle(F.relu(self.stem(x)))))


class Branches(nn.Module):
    """Two layers read the input, two make outputs; one of these is read by another layer as well."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(8, 8) for _ in range(5))

    def forward(self, x):
        inner = self.c(F.relu(self.a(x) + self.b(x)))
        return inner, self.d(inner), x + self.e(F.gelu(inner))


class InPlace(nn.Module):
    """A residual stream that is written in place, into a slice of a tensor made in the forward pass."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.last = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x):
        both = torch.zeros(len(x), 8)
        both[:, :4] = self.stem(x)
        both[:, 4:] += self.inner(both).relu_()
        return self.last(both)


class Computed(nn.Module):
    """Weights that are computed from parameters and buffers before they are used."""

    def __init__(self):
        super().__init__()
        self.first, self.low, self.up = nn.Linear(8, 8), nn.Parameter(torch.rand(8, 2)), nn.Parameter(torch.rand(2, 8))
        self.register_buffer("basis", torch.rand(8, 8))
        self.middle, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = F.linear(x @ self.basis, self.first.weight * self.basis + self.low @ self.up)
        return self.last(F.linear(x, (self.middle.weight - self.middle.weight.mean()) * 2))


class Unread(Backwards):
    """A layer whose output nothing reads is not the last."""

    def forward(self, x):
        y = F.relu(self.stem(x))
        self.middle(y)
        return self.head(y)


CASES = {
    "backwards": (Backwards, VECTORS, {"stem.weight"}, {"head.weight"}),
    "branches": (Branches, VECTORS, {"a.weight", "b.weight"}, {"d.weight", "e.weight"}),
    "in place": (InPlace, VECTORS, {"stem.weight"}, {"last.weight"}),
    "computed": (Computed, VECTORS, {"first.weight", "low", "up"}, {"last.weight"}),
    "unread": (Unread, VECTORS, {"stem.weight"}, {"head.weight"}),
    "resnet": (Residual, SMALL, {"stem.weight"}, {"fc2.weight"}),
    "unet": (UNet, SMALL[:, :1], {"down1.weight"}, {"last.weight"}),
    "language model": (LanguageModel, TOKENS, {"tokens.weight", "places.weight"}, {"head.weight"}),
    "tied": (lambda: LanguageModel(tied=True), TOKENS, {"tokens.weight", "places.weight"}, {"tokens.weight"}),
    "device unsaid": (lambda: GroupedDecoder("repeat"), TOKENS % 30, {"tokens.weight"}, {"head.weight"}),
    "einsum": (Einsum, torch.randn(2, 5, 8), {"q", "k", "v"}, {"o"}),
}


@pytest.mark.parametrize("case", CASES)
def test_first_and_last(case):
    build, inputs, first, last = CASES[case]
    flow = follow(build(), inputs)
    assert (flow.first, flow.last) == (first, last)


def test_hidden_layers_with_as_many_outputs_as_classes_are_inner():
    model = ResNet18(width=10, classes=10)
    flow = follow(model, SMALL)
    assert flow.first == {"conv1.weight"}
    assert flow.last == {"fc.weight"}


def test_the_norm_behind_each_convolution():
    model = BottleneckResNet((3, 12, 12), 5, (2, 1), 0.125)
    flow = follow(model, SMALL)
    expected = {"conv1": "bn1"}
    for path, block in ((f"layers.{i}.{j}", b) for i, stage in enumerate(model.layers) for j, b in enumerate(stage)):
        expected |= {f"{path}.conv{n}": f"{path}.bn{n}" for n in (1, 2, 3)}
        if block.shortcut is not None:
            expected[f"{path}.shortcut.conv"] = f"{path}.shortcut.bn"
    convolutions = {p for p, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert {p: n for p, n in flow.norms.items() if p in convolutions} == expected


class Norms(nn.Module):
    """Norms that do not take a layer's output alone."""

    def __init__(self):
        super().__init__()
        self.shared, self.skipped, self.activated, self.whole, self.three = (nn.Conv1d(4, 4, 1) for _ in range(5))
        self.linear, self.flat, self.answer = nn.Linear(6, 6), nn.Linear(6, 6), nn.Conv1d(4, 4, 1)
        self.norm, self.norm1, self.norm2, self.norm3 = (nn.BatchNorm1d(4) for _ in range(4))
        self.norm4, self.norm5, self.norm6 = nn.BatchNorm1d(4), nn.BatchNorm1d(6), nn.BatchNorm1d(4)

    def forward(self, x):
        x = self.norm(self.shared(self.norm(self.shared(x))))
        y = self.skipped(x)
        x = self.norm1(y) + y
        x = self.norm2(F.relu(self.activated(x)))
        x = self.norm3(self.whole(x))
        x = self.norm4(self.linear(x))
        answer = self.answer(x)
        return self.norm5(self.flat(x.mean(1))), self.norm6(answer), answer


def test_norms_that_take_more_or_less_than_a_layers_output_are_not_its():
    flow = follow(Norms(), torch.randn(2, 4, 6))
    layers = {"shared", "skipped", "activated", "whole", "linear", "flat", "answer"}
    assert {p: n for p, n in flow.norms.items() if p in layers} == {"whole": "norm3", "flat": "norm5"}


def test_weights_that_other_modules_read_are_told():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})

        def forward(self, x):
            return self.inner["b"](x) @ self.inner["a"].weight

    assert follow(Reader(), VECTORS).readers == {"inner.a.weight": ""}
    assert follow(LanguageModel(tied=True), TOKENS).readers == {}


def test_following_leaves_the_model_alone():
    model = Residual().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    follow(model, SMALL)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
