"""The deep residual networks of He et al. (2016): ResNet-50, whose blocks narrow, convolve and widen again."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from setpoint.recipes.models.resnet import Shortcut
from setpoint.recipes.models.shapes import Shape, initialise, scale_width

# Blocks widen to this many times their inner channels.
_EXPANSION = 4
# Below this side the stem of large images, which leaves a quarter of each side, would leave too little.
_LARGE = 64


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution with batch norm, added to their input; the 3x3 one strides."""

    def __init__(self, inputs: int, inner: int, stride: int, groups: int) -> None:
        super().__init__()
        outputs = _EXPANSION * inner
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else Shortcut(inputs, outputs, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, 4 inner, H / stride, W / stride)."""
        maps = functional.relu(self.bn1(self.conv1(inputs)))
        maps = functional.relu(self.bn2(self.conv2(maps)))
        skipped = inputs if self.shortcut is None else self.shortcut(inputs)
        return functional.relu(self.bn3(self.conv3(maps)) + skipped)


class BottleneckResNet(nn.Module):
    """A stem, stages of bottleneck blocks, global average pooling, and a linear layer.

    Images with a side below 64 meet a 3x3 stem that leaves their size, larger ones a strided 7x7 stem with
    max-pooling, as on ImageNet.

    Args:
        shape: (C, H, W) of an input.
        classes: Number of outputs.
        depths: Blocks of each stage: (3, 4, 6, 3) makes ResNet-50.
        width: Multiplier of the inner channels of the stages (64, 128, 256, 512).
        groups: Of the 3x3 convolutions; they divide the inner channels.
    """

    def __init__(
        self, shape: Shape, classes: int, depths: Sequence[int] = (3, 4, 6, 3), width: float = 1.0, groups: int = 1
    ) -> None:
        super().__init__()
        inputs = scale_width(64, width)
        large = min(shape[1:]) >= _LARGE
        kernel, stride = (7, 2) if large else (3, 1)
        self.conv1 = nn.Conv2d(shape[0], inputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        stages = []
        for number, depth in enumerate(depths):
            inner = scale_width(64 * 2**number, width)
            first = Bottleneck(inputs, inner, 2 if number else 1, groups)
            inputs = _EXPANSION * inner
            stages.append(nn.Sequential(first, *(Bottleneck(inputs, inner, 1, groups) for _ in range(depth - 1))))
        self.layers = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, classes)
        initialise(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs (N, C, H, W) to logits (N, classes)."""
        maps = self.pool(functional.relu(self.bn1(self.conv1(inputs))))
        logits: Tensor = self.fc(functional.adaptive_avg_pool2d(self.layers(maps), 1).flatten(1))
        return logits
