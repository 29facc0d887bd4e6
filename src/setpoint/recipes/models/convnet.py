"""A small convolutional network with batch norm, for inputs from 8x8 up."""

from torch import Tensor, nn
from torch.nn import functional

from setpoint.recipes.models.shapes import Shape, initialise, scale_width


class ConvNet(nn.Module):
    """Three 3x3 convolutions with batch norm and ReLU, global average pooling, and a linear layer.

    Args:
        shape: (C, H, W) of an input.
        classes: Number of outputs.
        width: Multiplier of the channels (32, 64, 64).
    """

    def __init__(self, shape: Shape, classes: int, width: float = 1.0) -> None:
        super().__init__()
        first, second, third = (scale_width(channels, width) for channels in (32, 64, 64))
        self.conv1 = nn.Conv2d(shape[0], first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        self.conv3 = nn.Conv2d(second, third, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(third)
        self.fc = nn.Linear(third, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw first weights."""
        initialise(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs (N, C, H, W) to logits (N, classes)."""
        maps = functional.relu(self.bn1(self.conv1(inputs)))
        maps = functional.relu(self.bn2(self.conv2(maps)))
        maps = functional.relu(self.bn3(self.conv3(maps)))
        logits: Tensor = self.fc(functional.adaptive_avg_pool2d(maps, 1).flatten(1))
        return logits
