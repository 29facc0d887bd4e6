"""The residual networks of He et al. (2016) for CIFAR: ResNet-20, -32, -56."""

from torch import Tensor, nn
from torch.nn import functional

from setpoint.recipes.models.shapes import Shape, initialise, scale_width


class Shortcut(nn.Module):
    """A 1x1 convolution with batch norm, where a block changes the shape of what passes through it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        maps: Tensor = self.bn(self.conv(inputs))
        return maps


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to their input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else Shortcut(inputs, outputs, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        maps = functional.relu(self.bn1(self.conv1(inputs)))
        maps = self.bn2(self.conv2(maps))
        skipped = inputs if self.shortcut is None else self.shortcut(inputs)
        return functional.relu(maps + skipped)


class ResNet(nn.Module):
    """A CIFAR ResNet: a convolution, three stages of basic blocks, global average pooling, and a linear layer.

    Args:
        shape: (C, H, W) of an input.
        classes: Number of outputs.
        depth: Layers with weights on the longest path, 6n + 2: 20, 32, 44, 56, ...
        width: Multiplier of the stages' channels (16, 32, 64).

    Raises:
        ValueError: If ``depth`` is not 6n + 2 with n >= 1.
    """

    def __init__(self, shape: Shape, classes: int, depth: int, width: float = 1.0) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(
                f"a CIFAR ResNet of depth {depth} was asked for; 6n + 2 is possible: 8, 14, 20, 26, 32, ..."
            )
        first, second, third = (scale_width(channels, width) for channels in (16, 32, 64))
        self.conv1 = nn.Conv2d(shape[0], first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(first, first, blocks, stride=1)
        self.layer2 = _stage(first, second, blocks, stride=2)
        self.layer3 = _stage(second, third, blocks, stride=2)
        self.fc = nn.Linear(third, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw first weights."""
        initialise(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs (N, C, H, W) to logits (N, classes)."""
        maps = functional.relu(self.bn1(self.conv1(inputs)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits: Tensor = self.fc(functional.adaptive_avg_pool2d(maps, 1).flatten(1))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
