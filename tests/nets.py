"""Small networks and a training loop that know nothing of sparsity."""

import torch
from torch import nn


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 18), nn.ReLU(), nn.Linear(18, 16), nn.ReLU(), nn.Linear(16, 8))


class ConvNet(nn.Module):
    """Plain, strided, grouped and transposed convolutions, a norm, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, groups=2, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(12, 10, 2, stride=2)
        self.fc = nn.Linear(10, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv1(x)))
        x = torch.relu(self.up(torch.relu(self.grouped(x))))
        return self.fc(x.mean((2, 3)))


NETS = {"mlp": (mlp, (20,), 8), "convnet": (ConvNet, (4, 6, 6), 6)}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-4),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
}


def build(net: str, optimizer: str = "sgd", seed: int = 0):
    """(model, optimizer, batch(step) -> (inputs, targets))."""
    factory, shape, classes = NETS[net]
    torch.manual_seed(seed)
    model = factory()

    def batch(step: int):
        generator = torch.Generator().manual_seed(1000 + step)
        inputs = torch.randn(16, *shape, generator=generator)
        return inputs, torch.randint(classes, (16,), generator=generator)

    return model, OPTIMIZERS[optimizer](model.parameters()), batch


def train(model, optimizer, batch, steps, start=0):
    for step in range(start, start + steps):
        inputs, targets = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
