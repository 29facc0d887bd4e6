"""Stop in the middle of a run and go on from a checkpoint: the run's state is in the optimizer's state dict.

python examples/resume.py
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

import setpoint

STEPS = 200


def build() -> tuple[nn.Module, torch.optim.Optimizer, setpoint.Sparsifier]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, setpoint.Sparsifier(model, optimizer, method="magnitude", target=0.8, steps=STEPS)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        inputs, targets = torch.randn(32, 16, generator=generator), torch.randint(4, (32,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def main() -> bool:
    path = Path(tempfile.mkdtemp()) / "checkpoint.pt"

    model, optimizer, _ = build()
    train(model, optimizer, 0, 70)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)

    model, optimizer, sparsifier = build()  # in another process, perhaps
    checkpoint = torch.load(path, weights_only=True)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    print(f"back at step {sparsifier.step}, phase {sparsifier.phase}")
    train(model, optimizer, 70, STEPS)

    through, optimizer, _ = build()
    train(through, optimizer, 0, STEPS)
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), through.parameters()))
    print(f"same weights as without the stop, bit for bit: {same}")
    return same


if __name__ == "__main__":
    main()
