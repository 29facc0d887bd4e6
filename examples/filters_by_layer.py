"""Whole filters, a budget for each layer, and the last convolution left dense.

python examples/filters_by_layer.py
"""

import torch
from torch import nn

import setpoint


def main(steps: int = 60) -> setpoint.Report:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 10, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparsifier = setpoint.Sparsifier(
        model,
        optimizer,
        unit="filter",
        scope={"0.*": 0.25, "3.*": 0.5},
        exclude="6.*",
        steps=steps,
        schedule=setpoint.Schedule("linear", begin=10, end=40),
    )
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(16, 1, 12, 12)), torch.randint(10, (16,))).backward()
        optimizer.step()
    print(sparsifier.report())
    return sparsifier.report()


if __name__ == "__main__":
    main()
