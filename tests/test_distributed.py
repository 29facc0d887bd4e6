"""Two ranks decide alike without a word to one another, and like one rank with both their batches."""

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

import setpoint

from nets import mlp

STEPS = 12


def halves(step):
    generator = torch.Generator().manual_seed(step)
    inputs, targets = torch.randn(16, 20, generator=generator), torch.randint(8, (16,), generator=generator)
    return inputs.chunk(2), targets.chunk(2)


def rank_main(rank, folder, method):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparsifier = setpoint.Sparsifier(model, optimizer, method=method, target=0.8, steps=STEPS)
    for step in range(STEPS):
        inputs, targets = halves(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[rank]), targets[rank]).backward()
        optimizer.step()
    torch.save({"masks": sparsifier.masks, "model": model.module.state_dict()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["magnitude", "gsp", "set", "rigl"])
def test_ranks_agree_bit_for_bit_and_with_one_process(tmp_path, method):
    mp.spawn(rank_main, (str(tmp_path), method), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for part in ("masks", "model"):
        assert all(torch.equal(first[part][n], second[part][n]) for n in first[part])

    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparsifier = setpoint.Sparsifier(model, optimizer, method=method, target=0.8, steps=STEPS)
    for step in range(STEPS):
        inputs, targets = halves(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.cat(inputs)), torch.cat(targets)).backward()
        optimizer.step()
    assert all(torch.equal(first["masks"][n], m) for n, m in sparsifier.masks.items())
    for name, value in model.state_dict().items():
        assert torch.allclose(first["model"][name], value, atol=1e-5)


def measuring_rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    inner = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1536, 8)
    )
    model = nn.parallel.DistributedDataParallel(inner)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sparsifier = setpoint.Sparsifier(
        model,
        optimizer,
        target=setpoint.Target(sparsity=0.3, cost="latency_ms"),
        unit="channel",
        example_inputs=torch.randn(16, 3, 12, 12),
        steps=STEPS,
    )
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step * 2 + rank)
        optimizer.zero_grad()
        model(torch.randn(4, 3, 12, 12, generator=generator)).square().mean().backward()
        optimizer.step()
    found = {"kept": sparsifier.kept_units(), "latency": sparsifier.state_dict()["latency"]}
    torch.save(found | {"model": inner.state_dict()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_agree_on_what_was_measured(tmp_path):
    mp.spawn(measuring_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["latency"] == second["latency"]
    for part in ("kept", "model"):
        assert all(torch.equal(first[part][n], second[part][n]) for n in first[part])
