"""Multilayer perceptrons, LeNet-300-100 among them."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from setpoint.recipes.models.shapes import Shape


class Perceptron(nn.Module):
    """Two hidden layers with ReLU, on flattened inputs.

    Args:
        shape: (C, H, W) of an input.
        classes: Number of outputs.
        hidden: Sizes of the two hidden layers: 300 and 100 in LeNet-300-100 (LeCun et al., 1998).
    """

    def __init__(self, shape: Shape, classes: int, hidden: Sequence[int]) -> None:
        super().__init__()
        first, second = hidden
        self.fc1 = nn.Linear(math.prod(shape), first)
        self.fc2 = nn.Linear(first, second)
        self.fc3 = nn.Linear(second, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs (N, C, H, W) to logits (N, classes)."""
        hidden = functional.relu(self.fc1(inputs.flatten(1)))
        hidden = functional.relu(self.fc2(hidden))
        logits: Tensor = self.fc3(hidden)
        return logits
