"""VGG-16 with batch norm, as it is used on CIFAR: thirteen convolutions and one linear layer."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from setpoint.recipes.models.shapes import Shape, initialise, require_size, scale_width

# Channels and number of convolutions of each stage; 2x2 max-pooling ends each.
_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_SMALLEST = 2 ** len(_STAGES)


class VGG16(nn.Module):
    """Five stages of 3x3 convolutions with batch norm and ReLU, each ended by max-pooling, and a linear layer.

    Args:
        shape: (C, H, W) of an input; at least 32x32.
        classes: Number of outputs.
        width: Multiplier of the stages' channels (64, 128, 256, 512, 512).

    Raises:
        ValueError: If inputs are smaller than 32x32.
    """

    def __init__(self, shape: Shape, classes: int, width: float = 1.0) -> None:
        super().__init__()
        require_size("vgg16", shape, _SMALLEST)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = shape[0]
        for stage, (channels, convolutions) in enumerate(_STAGES, start=1):
            outputs = scale_width(channels, width)
            for index in range(1, convolutions + 1):
                layers[f"conv{stage}_{index}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
                layers[f"bn{stage}_{index}"] = nn.BatchNorm2d(outputs)
                layers[f"relu{stage}_{index}"] = nn.ReLU()
                inputs = outputs
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
        self.features = nn.Sequential(layers)
        self.fc = nn.Linear(inputs, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw first weights."""
        initialise(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs (N, C, H, W) to logits (N, classes)."""
        maps = functional.adaptive_avg_pool2d(self.features(inputs), 1)
        logits: Tensor = self.fc(maps.flatten(1))
        return logits
