"""LeNet-5 as the Caffe examples and the pruning literature have it."""

from torch import Tensor, nn
from torch.nn import functional

from setpoint.recipes.models.shapes import Shape, require_size, scale_width

_KERNEL = 5
_SMALLEST = 16


class LeNet5(nn.Module):
    """Two 5x5 convolutions, each with 2x2 max-pooling, and two linear layers: 430,500 weights on MNIST.

    Args:
        shape: (C, H, W) of an input; at least 16x16.
        classes: Number of outputs.
        width: Multiplier of the channels (20, 50) and of the hidden layer (500).

    Raises:
        ValueError: If inputs are smaller than 16x16.
    """

    def __init__(self, shape: Shape, classes: int, width: float = 1.0) -> None:
        super().__init__()
        require_size("lenet5", shape, _SMALLEST)
        channels, height, wide = shape
        first, second, hidden = (scale_width(size, width) for size in (20, 50, 500))
        self.conv1 = nn.Conv2d(channels, first, _KERNEL)
        self.conv2 = nn.Conv2d(first, second, _KERNEL)
        self.fc1 = nn.Linear(second * _pooled(height) * _pooled(wide), hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs (N, C, H, W) to logits (N, classes)."""
        # No activation between convolution and pooling: in this variant the only ReLU follows the hidden layer.
        maps = functional.max_pool2d(self.conv1(inputs), 2)
        maps = functional.max_pool2d(self.conv2(maps), 2)
        hidden = functional.relu(self.fc1(maps.flatten(1)))
        logits: Tensor = self.fc2(hidden)
        return logits


def _pooled(size: int) -> int:
    """Return what two rounds of convolution and pooling leave of one side of the input."""
    for _ in range(2):
        size = (size - _KERNEL + 1) // 2
    return size
