"""Ranks of a data-parallel run: whether they keep the same weights, bit for bit, without a word to one another."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import nn

import setpoint

STEPS = 12
METHODS = ("magnitude", "gsp", "wgsef", "l0", "hoyer", "static", "set", "rigl")
UNITS = ("weight", "row", "2:4", "neuron")


def run(long: bool) -> dict[str, Any]:
    """Counts of the runs, and of those whose ranks disagree or are not exact; these must be 0."""
    worlds = (2, 3) if long else (2,)
    tried, disagree, inexact = 0, [], []
    for world in worlds:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_rank, (world, folder), nprocs=world)
            found = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]
        for name, first in found[0].items():
            tried += 1
            others = [other[name] for other in found[1:]]
            if not all(torch.equal(first["model"][k], o["model"][k]) for o in others for k in first["model"]):
                disagree.append(f"{world} ranks, {name}")
            if not all(o["exact"] for o in [first, *others]):
                inexact.append(f"{world} ranks, {name}")
    return {"tried": tried, "disagree": disagree, "not exact": inexact}


def _rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    runs = {f"{method}, {unit}": _run(rank, method, unit) for method, unit in itertools.product(METHODS, UNITS)}
    torch.save(runs, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def _run(rank: int, method: str, unit: str) -> dict[str, Any]:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(20, 18), nn.ReLU(), nn.Linear(18, 16), nn.ReLU(), nn.Linear(16, 8))
    model = nn.parallel.DistributedDataParallel(inner)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    inputs = torch.randn(4, 20) if unit == "neuron" else None
    sparsifier = setpoint.Sparsifier(
        model, optimizer, method=method, target=0.4, unit=unit, steps=STEPS, example_inputs=inputs
    )
    for step in range(STEPS):
        # Other examples on each rank.
        generator = torch.Generator().manual_seed(1000 * rank + step)
        batch, labels = torch.randn(8, 20, generator=generator), torch.randint(8, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), labels).backward()
        optimizer.step()
    return {"model": inner.state_dict(), "exact": sparsifier.report().exact}
