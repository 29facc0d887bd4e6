"""Models to transform: a residual network as in the paper, a small language model, and their inputs."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from setpoint.recipes.models import build_model
from wiring.wiring_transformers import Block, Decoder

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SMALL = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """For CIFAR with a 3x3 stem, for ImageNet with a 7x7 one of stride 2 and pooling."""

    def __init__(self, width: int = 64, classes: int = 100, imagenet: bool = False) -> None:
        super().__init__()
        kernel, stride, padding = (7, 2, 3) if imagenet else (3, 1, 1)
        self.conv1, self.bn1 = nn.Conv2d(3, width, kernel, stride, padding, bias=False), nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(BasicBlock(i, o, 1 if first else 2), BasicBlock(o, o, 1))
                for i, o, first in zip(widths, widths[1:], [True, False, False, False])
            )
        )
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.pool(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class LanguageModel(Decoder):
    """The decoder of the wiring's tests in sizes at which attention is not all that costs."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(64, 48), nn.Embedding(16, 48)
        self.blocks = nn.ModuleList(Block(48, 4, 12, True) for _ in range(2))
        for block in self.blocks:
            block.mlp[0], block.mlp[2] = nn.Linear(48, 96), nn.Linear(96, 48)
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 64, bias=False)
        if tied:
            self.head.weight = self.tokens.weight


class Residual(nn.Module):
    """A small residual network in which everything is there once: strides, a bias, a depthwise and a grouped part."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 12, 3, padding=2, dilation=2), nn.BatchNorm2d(12)
        self.skip = nn.Conv2d(8, 12, 1, stride=2)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.grouped = nn.Conv2d(12, 16, 3, groups=2, padding=1, padding_mode="reflect")
        self.fc1, self.fc2 = nn.Linear(16, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        x = F.relu(y + self.skip(x))
        x = F.relu(self.grouped(self.depthwise(x)))
        return self.fc2(F.relu(self.fc1(x.mean((2, 3)))))


def on_meta(name: str, width: float = 1.0) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, shape=(3, 32, 32), classes=10, width=width)


def lively(model: nn.Module) -> nn.Module:
    """With norms that do something in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                for tensor, low in ((module.weight, 0.5), (module.running_var, 0.5), (module.bias, -0.5)):
                    tensor.copy_(low + torch.rand(tensor.shape, generator=generator))
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
    return model
