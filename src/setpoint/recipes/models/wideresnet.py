"""The wide residual networks of Zagoruyko and Komodakis (2016), which normalise before each convolution."""

from torch import Tensor, nn
from torch.nn import functional

from setpoint.recipes.models.shapes import Shape, initialise, scale_width


class WideBlock(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, twice, added to the input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        activated = functional.relu(self.bn1(inputs))
        maps: Tensor = self.conv2(functional.relu(self.bn2(self.conv1(activated))))
        # A projection sees the normalised input, as in the paper; an identity is left alone.
        return maps + (inputs if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """A wide ResNet without dropout.

    Args:
        shape: (C, H, W) of an input.
        classes: Number of outputs.
        depth: Layers with weights, 6n + 4: 16, 22, 28, ...
        widening: How much wider than (16, 32, 64) the three stages are.
        width: Multiplier of all channels, the first convolution's included.

    Raises:
        ValueError: If ``depth`` is not 6n + 4 with n >= 1.
    """

    def __init__(self, shape: Shape, classes: int, depth: int, widening: int, width: float = 1.0) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"a wide ResNet of depth {depth} was asked for; 6n + 4 is possible: 10, 16, 22, 28, ...")
        sizes = (16, 16 * widening, 32 * widening, 64 * widening)
        stem, first, second, third = (scale_width(channels, width) for channels in sizes)
        self.conv1 = nn.Conv2d(shape[0], stem, 3, padding=1, bias=False)
        self.layer1 = _stage(stem, first, blocks, stride=1)
        self.layer2 = _stage(first, second, blocks, stride=2)
        self.layer3 = _stage(second, third, blocks, stride=2)
        self.bn = nn.BatchNorm2d(third)
        self.fc = nn.Linear(third, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw first weights."""
        initialise(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs (N, C, H, W) to logits (N, classes)."""
        maps = self.layer3(self.layer2(self.layer1(self.conv1(inputs))))
        maps = functional.relu(self.bn(maps))
        logits: Tensor = self.fc(functional.adaptive_avg_pool2d(maps, 1).flatten(1))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = WideBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(WideBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
