"""The densely connected networks of Huang et al. (2017) for CIFAR, without bottlenecks: DenseNet-40."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from setpoint.recipes.models.shapes import Shape, initialise, scale_width

_BLOCKS = 3
_STEM = 16


class DenseLayer(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, whose maps are put behind those that it read."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, inputs + growth, H, W)."""
        return torch.cat([inputs, self.conv(functional.relu(self.bn(inputs)))], 1)


class Transition(nn.Module):
    """Batch norm, ReLU and a 1x1 convolution of as many channels, then 2x2 average pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, channels, H / 2, W / 2)."""
        return functional.avg_pool2d(self.conv(functional.relu(self.bn(inputs))), 2)


class DenseNet(nn.Module):
    """A convolution, three dense blocks with transitions between them, batch norm, pooling, and a linear layer.

    Args:
        shape: (C, H, W) of an input.
        classes: Number of outputs.
        depth: Layers with weights, 3n + 4: 40, 100, ...
        growth: Channels that each layer adds.
        width: Multiplier of the first convolution's 16 channels and of ``growth``.

    Raises:
        ValueError: If ``depth`` is not 3n + 4 with n >= 1.
    """

    def __init__(self, shape: Shape, classes: int, depth: int, growth: int = 12, width: float = 1.0) -> None:
        super().__init__()
        layers, rest = divmod(depth - 4, _BLOCKS)
        if rest or layers < 1:
            raise ValueError(f"a DenseNet of depth {depth} was asked for; 3n + 4 is possible: 7, 10, ..., 40, ..., 100")
        channels, growth = scale_width(_STEM, width), scale_width(growth, width)
        self.conv = nn.Conv2d(shape[0], channels, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for number in range(_BLOCKS):
            blocks += [Transition(channels)] if number else []
            blocks.append(nn.Sequential(*(DenseLayer(channels + i * growth, growth) for i in range(layers))))
            channels += layers * growth
        self.blocks = nn.Sequential(*blocks)
        self.bn, self.fc = nn.BatchNorm2d(channels), nn.Linear(channels, classes)
        initialise(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs (N, C, H, W) to logits (N, classes)."""
        maps = functional.relu(self.bn(self.blocks(self.conv(inputs))))
        logits: Tensor = self.fc(functional.adaptive_avg_pool2d(maps, 1).flatten(1))
        return logits
