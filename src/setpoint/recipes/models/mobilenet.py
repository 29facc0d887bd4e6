"""MobileNetV2 (Sandler et al., 2018) as it is used on CIFAR: depthwise convolutions between 1x1 ones."""

from torch import Tensor, nn
from torch.nn import functional

from setpoint.recipes.models.shapes import Shape, initialise, scale_width

# Expansion, channels, blocks and stride of each stage. On CIFAR the stem and the second stage do not stride.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_STEM, _HEAD = 32, 1280


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution with batch norm."""
    padding = kernel // 2
    return [nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    """Channels are expanded, each convolved alone, and narrowed without activation; added where the shape allows."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * inputs
        expand = [*_convolution(inputs, inner, 1), nn.ReLU6()] if expansion > 1 else []
        depthwise = [*_convolution(inner, inner, 3, stride, groups=inner), nn.ReLU6()]
        self.layers = nn.Sequential(*expand, *depthwise, *_convolution(inner, outputs, 1))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        maps: Tensor = self.layers(inputs)
        return inputs + maps if self.adds else maps


class MobileNetV2(nn.Module):
    """A stem, seven stages of inverted residuals, a 1x1 convolution, global average pooling, and a linear layer.

    Args:
        shape: (C, H, W) of an input.
        classes: Number of outputs.
        width: Multiplier of all channels.
    """

    def __init__(self, shape: Shape, classes: int, width: float = 1.0) -> None:
        super().__init__()
        inputs = scale_width(_STEM, width)
        self.stem = nn.Sequential(*_convolution(shape[0], inputs, 3), nn.ReLU6())
        blocks = []
        for expansion, channels, depth, stride in _STAGES:
            outputs = scale_width(channels, width)
            for number in range(depth):
                blocks.append(InvertedResidual(inputs, outputs, expansion, 1 if number else stride))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        outputs = scale_width(_HEAD, width)
        self.head = nn.Sequential(*_convolution(inputs, outputs, 1), nn.ReLU6())
        self.fc = nn.Linear(outputs, classes)
        initialise(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs (N, C, H, W) to logits (N, classes)."""
        maps = self.head(self.blocks(self.stem(inputs)))
        logits: Tensor = self.fc(functional.adaptive_avg_pool2d(maps, 1).flatten(1))
        return logits
