"""What a support that moves costs at a step: ResNet-20 on random images of CIFAR-10's shape, batches of 128.

Between updates a support that moves and one that never does run the same code; this measures it. Times are of the
process (CPU), as medians over steps that take turns, so that what else runs on the machine hardly counts. One thread.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional as F
from torch.optim import SGD

import setpoint
from setpoint.bench.machine import describe
from setpoint.recipes.models import build_model

METHODS = ("dense", "static", "set", "rigl")
SPARSITY, INTERVAL, BATCH = 0.9, 100, 128
RESULTS = Path(__file__).parent / "results" / "moving-masks.json"


class Run:
    """A network in training, and the times of its steps."""

    def __init__(self, method: str, interval: int) -> None:
        torch.manual_seed(0)
        self.model = build_model("resnet20", shape=(3, 32, 32), classes=10)
        self.optimizer = SGD(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        if method != "dense":
            schedule = setpoint.Schedule("constant", begin=0, end=1.0, interval=interval)
            self.sparsifier = setpoint.Sparsifier(
                self.model,
                self.optimizer,
                method=method,
                target=SPARSITY,
                scope="erk",
                steps=1_000_000,
                schedule=schedule,
            )
        self.generator = torch.Generator().manual_seed(0)
        self.whole: list[float] = []
        self.own: list[float] = []

    def backward(self, batch: int) -> None:
        """Leave gradients of a new batch."""
        images = torch.randn(batch, 3, 32, 32, generator=self.generator)
        labels = torch.randint(10, (batch,), generator=self.generator)
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(images), labels).backward()

    def step(self) -> None:
        """Train one step, and note how long it took."""
        begun = time.process_time()
        self.backward(BATCH)
        half = time.process_time()
        self.optimizer.step()
        ended = time.process_time()
        self.whole.append(ended - begun)
        self.own.append(ended - half)


def between_updates(steps: int) -> dict[str, dict[str, float]]:
    """Seconds of whole steps and of the optimizer's part, no update among them."""
    runs = {method: Run(method, interval=10 * steps) for method in METHODS}
    for turn in range(steps + 2):
        for run in runs.values():
            run.step()
            if turn == 1:  # what came before was warming up
                run.whole.clear()
                run.own.clear()
    return {name: {"step": median(run.whole), "optimizer": median(run.own)} for name, run in runs.items()}


def optimizer_alone(repeats: int, interval: int) -> dict[str, float]:
    """Seconds of the optimizer's part, where every `interval`-th step is an update."""
    runs = {method: Run(method, interval) for method in METHODS}
    for run in runs.values():
        run.backward(2)
    gradients = {name: [p.grad.clone() for p in run.model.parameters()] for name, run in runs.items()}
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(repeats):
        for name, run in runs.items():
            for parameter, gradient in zip(run.model.parameters(), gradients[name]):
                parameter.grad.copy_(gradient)
            begun = time.process_time()
            run.optimizer.step()
            times[name].append(time.process_time() - begun)
    return {name: median(each) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12, help="whole steps of each method")
    parser.add_argument("--repeats", type=int, default=300, help="optimizer's steps of each method, on fixed gradients")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps, still = between_updates(arguments.steps), optimizer_alone(arguments.repeats, 10**6)
    moving = optimizer_alone(arguments.repeats // 10, 1)
    dense = steps["dense"]["step"]
    found = {
        "machine": describe(),
        "what": f"resnet20, batch {BATCH}, SGD with momentum, sparsity {SPARSITY}, scope erk; seconds of CPU time",
        "steps": arguments.steps,
        "repeats": arguments.repeats,
        "step_between_updates": {name: row["step"] for name, row in steps.items()},
        "optimizer_step_between_updates": still,
        "optimizer_step_with_an_update": {name: moving[name] for name in ("set", "rigl")},
        # The difference of whole steps lies within their scatter: what differs is the optimizer's part.
        "rigl_over_static_between_updates": (dense + still["rigl"]) / (dense + still["static"]),
        "rigl_over_static_of_whole_steps": steps["rigl"]["step"] / steps["static"]["step"],
        "static_over_dense": (dense - still["dense"] + still["static"]) / dense,
        "updates_every_100_steps_over_static": 1.0 + (moving["rigl"] - still["static"]) / (INTERVAL * dense),
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
