"""More accuracy at the same operations: larger sparse layers in place of dense ones, their masks fixed and moving.

A model that is too small for its data is trained dense, and with its layers made larger in each of the four ways, at
the operations of the dense one: with masks that are drawn once (`static`), that move at random (`set`) and that grow by
gradient (`rigl`). Parallel and factorized layers also have an activation inside, as in the paper's ImageNet and CIFAR
networks: without one they compute nothing that the dense layer could not. All runs of a model have the same recipe. A
finished run is not repeated, a stopped one goes on where it was; after each,
`results/<data>-<model>-transforms.{json,md,png}` are written anew.

    python benchmarks/sparse_ift.py resnet20
    python benchmarks/sparse_ift.py gpt --kinds wide --methods rigl --seeds 0 1 2
    python benchmarks/sparse_ift.py gpt --collect
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pool import run_pool
from setpoint.recipes import TrainConfig, resolve, train_run
from sparse_ift_tables import KINDS, write_results

RESULTS = Path(__file__).parent / "results"
METHODS = ("static", "set", "rigl")
# Masks that are asked for beside these: fewer weights move, and new ones take no larger steps of Adam than the old.
GENTLE = {"drop_fraction": 0.1, "second_moment": "mean"}
SPARSITY = 0.75
# Narrow enough that the data hold more than the model can learn.
SETTINGS: dict[str, dict[str, Any]] = {
    "resnet20": {"data": "cifar10", "width": 0.5, "epochs": 8, "precision": "bfloat16"},
    # The learning rate that is best for the dense twin: 1.82 nats on validation bytes at 0.001, 1.66 at 0.003, 1.70 at
    # 0.006.
    "gpt": {"data": "tinyshakespeare", "width": 0.5, "epochs": 6, "lr": 3e-3},
}


@dataclass(frozen=True)
class Trial:
    """One run beside its dense twin."""

    model: str
    kind: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"transforms-{self.model}-{self.kind}-{self.method}-{self.seed}"

    @property
    def config(self) -> TrainConfig:
        """What it is told."""
        kind, _, inner = self.kind.partition("-")
        told: dict[str, Any] = {"transform": kind, "transform_inner": inner or "linear", "method": self.method}
        told |= {"method": "rigl", "options": GENTLE} if self.method == "gentle" else {}
        told |= {"model": self.model, "seed": self.seed, "transform_sparsity": SPARSITY, **SETTINGS[self.model]}
        return resolve(TrainConfig.of(told))

    def run(self, runs: Path) -> dict[str, Any]:
        """Train, or go on where a stopped run is."""
        folder = runs / self.name
        return train_run(self.config, folder, resume=(folder / "config.yaml").exists()).to_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(SETTINGS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, "gentle"), default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--collect", action="store_true", help="run nothing, only write the results anew")
    args = parser.parse_args()
    # Told to end, end the workers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # What the claim is about comes first: wide layers with masks that grow by gradient.
    asked = [
        Trial(args.model, kind, method, seed)
        for seed in args.seeds
        for kind in args.kinds
        for method in args.methods[::-1]
    ]
    todo = [] if args.collect else [trial for trial in asked if not (args.runs / trial.name / "report.json").exists()]
    # One run a seed trains the dense twin that the others of the seed share.
    first = [next(trial for trial in todo if trial.seed == seed) for seed in dict.fromkeys(t.seed for t in todo)]
    batches = (first, [trial for trial in todo if trial not in first])
    run, tell = partial(Trial.run, runs=args.runs), partial(_tell, args)
    failed = sum(run_pool(batch, run, tell, processes=args.processes) for batch in batches)
    collect(args)
    if failed:
        sys.exit(f"{failed} runs failed")


def _tell(args: argparse.Namespace, trial: Trial, result: dict[str, Any]) -> None:
    figures = ", ".join(f"{key} {result[key]:.4f}" for key in ("test_accuracy", "test_loss", "dense_test_loss"))
    print(f"{trial.name}: {figures}", flush=True)
    collect(args)


def collect(args: argparse.Namespace) -> None:
    """Write the results from all finished runs of the model."""
    found = []
    for path in sorted(args.runs.glob(f"transforms-{args.model}-*/report.json")):
        kind, method, seed = path.parent.name.removeprefix(f"transforms-{args.model}-").rsplit("-", 2)
        result = json.loads(path.read_text(encoding="utf-8"))
        if all(result["config"][name] == value for name, value in SETTINGS[args.model].items()):
            found.append({"kind": kind, "mask": method, "seed": int(seed), **result})
    if found:
        data = SETTINGS[args.model]["data"]
        write_results(args.model, found, args.results / f"{data}-{args.model}-transforms")


if __name__ == "__main__":
    main()
