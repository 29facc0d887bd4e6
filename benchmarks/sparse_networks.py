"""Trained networks with 95 % zeros, on the kernels that `use_sparse_kernels` chooses for them."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import setpoint
from quiet import measured_quietly
from setpoint.deploy import use_sparse_kernels
from setpoint.deploy.kernels import Race
from setpoint.deploy.kernels.race import gain
from setpoint.recipes.data import Dataset, load_dataset
from sparse_layers import int8

HIDDEN = {"LeNet-300-100": (300, 100), "784-2048-2048-10": (2048, 2048)}
EPOCHS, BATCH, ZEROS = 2, 128, 0.95


def time_network(name: str, batch: int, *, runs: Path, race: Race, patience: float) -> dict[str, Any]:
    """Train a network, if that is not done yet, and measure it: dense, sparse, and in int8."""
    data = load_dataset("mnist")
    model = _trained(runs / f"{name}.safetensors", HIDDEN[name], data)
    images, labels = _scaled(data.test.inputs), data.test.targets
    row = _measure(model, images[:batch], race, patience)
    row["accuracy"] = {kind: _accuracy(row.pop(kind), images, labels) for kind in ("dense", "sparse", "int8")}
    return row


def _trained(path: Path, hidden: tuple[int, int], data: Dataset) -> nn.Module:
    torch.manual_seed(0)
    sizes = (784, *hidden, 10)
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
    model = nn.Sequential(nn.Flatten(), *layers[:-1], layers[-1][0])
    if path.exists():
        setpoint.load(path, model)
        return model.eval()
    images, labels = _scaled(data.train.inputs), data.train.targets
    steps, since = len(images) // BATCH * EPOCHS, time.perf_counter()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    sparsifier = setpoint.Sparsifier(model, optimizer, method="magnitude", target=ZEROS, steps=steps)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images))[: steps // EPOCHS * BATCH].view(-1, BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    print(sparsifier.report(), f"{time.perf_counter() - since:.0f} s", sep="\n", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    setpoint.save(model, path)
    return model.eval()


@torch.no_grad()
def _measure(model: nn.Module, x: torch.Tensor, race: Race, patience: float) -> dict[str, Any]:
    quantised = int8(model)

    def run() -> dict[str, Any]:
        fast, report = use_sparse_kernels(model, x, timer=race)
        times = race({"dense": lambda: model(x), "int8": lambda: quantised(x)})
        return {
            "report": report.to_dict(),
            "int8_gain": round(gain(times["dense"], times["int8"]), 3),
            "dense": model,
            "sparse": fast,
            "int8": quantised,
        }

    row, others = measured_quietly(run, patience=patience)
    return row | {"other_cores": None if others is None else round(others, 2)}


@torch.no_grad()
def _accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    return float((model(images).argmax(1) == labels).float().mean())


def _scaled(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255.0
