"""Steps of training on models that are mostly weights: real ones, with forward and backward pass."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch.nn import functional as F
from torch.optim import SGD

from setpoint.bench.resident import highest_resident, in_a_process
from setpoint.bench.stack import Stack
from setpoint.bench.update import SPARSITY
from setpoint.methods import make_method
from setpoint.sparsifier import Sparsifier

STEPS, ROWS = 10, 4


@dataclass(frozen=True)
class Trained:
    """What training took.

    Attributes:
        seconds_a_step: the median.
        longest_step: seconds of the one that took longest.
        peak_gb: of the whole process, in 10^9 bytes; None where the system does not tell.
        sparsity: of the model at the end.
    """

    seconds_a_step: float
    longest_step: float
    peak_gb: float | None
    sparsity: float | None


def train(stack: Stack, unit: str, method: str | None) -> Trained:
    """Train in a process of its own: an update at every step, the freeze at the last one; None is without a method."""
    return in_a_process(_train, stack, unit, method, torch.get_num_threads())


def _train(stack: Stack, unit: str, method: str | None, threads: int) -> Trained:
    torch.set_num_threads(threads)
    model = stack.build()
    optimizer = SGD(model.parameters(), lr=1e-3)
    sparsifier = None
    if method is not None:
        schedule = replace(make_method(method).schedule, begin=0, end=STEPS, interval=1)
        sparsifier = Sparsifier(
            model, optimizer, method=method, target=SPARSITY, unit=unit, steps=STEPS, schedule=schedule
        )
    inputs, targets = stack.inputs(2 * ROWS).chunk(2)
    seconds = []
    for _ in range(STEPS):
        since = time.perf_counter()
        optimizer.zero_grad()
        F.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - since)
    peak = highest_resident()
    reached = None if sparsifier is None else sparsifier.sparsity
    return Trained(median(seconds), max(seconds), None if peak is None else peak / 1e9, reached)
