"""A training loop of your own, and one statement more: 95 % of the weights go.

python examples/own_loop.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import setpoint


def main(epochs: int = 30) -> setpoint.Report:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batches = len(inputs) // 64

    sparsifier = setpoint.Sparsifier(model, optimizer, target=0.95, steps=epochs * batches)

    for _ in range(epochs):
        for batch in torch.randperm(len(inputs))[: batches * 64].view(batches, 64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()

    accuracy = (model(inputs).argmax(1) == targets).float().mean()
    print(sparsifier.report())
    print(f"training accuracy {accuracy:.2%}")
    return sparsifier.report()


if __name__ == "__main__":
    main()
