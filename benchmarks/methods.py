"""Which method: accuracy against sparsity, every method and two honest baselines beside the dense twin.

`weights` makes single weights zero, `structured` whole filters and neurons (LeNet-5), `channels` takes channels out of
a network (ResNet-20 on CIFAR-10) until its operations are as few as asked for. The comparison can be run in
pieces, in any order, and stopped at any moment: a finished run is not repeated, a stopped one goes on where it was.
After each run `results/<data>-<model>[-<mode>].json`, `.md` and `.png` are written anew from all finished runs of
that model, mode and number of epochs in the folder of runs.

    python benchmarks/methods.py lenet300
    python benchmarks/methods.py lenet5 structured --variants magnitude small-dense --seeds 0
    python benchmarks/methods.py resnet20 channels
    python benchmarks/methods.py lenet5 --collect
"""

from __future__ import annotations

import argparse
import signal
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from methods_runs import DATA, MODES, Task, finished, stem, tasks_in
from pool import run_pool

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    args = _arguments()
    # Told to end, end the workers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    failed = 0 if args.collect else run_all(args)
    collect(args)
    if failed:
        sys.exit(f"{failed} runs failed")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(DATA))
    parser.add_argument("mode", choices=list(MODES), nargs="?", default="weights")
    parser.add_argument("--epochs", type=int, help="the mode's if left out")
    parser.add_argument("--sparsities", type=float, nargs="+", help="the mode's if left out")
    parser.add_argument("--variants", nargs="+", help="all of the mode if left out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--collect", action="store_true", help="run nothing, only write the results anew")
    args = parser.parse_args()
    mode = MODES[args.mode]
    if args.model not in mode.epochs:
        parser.error(f"{args.mode} runs are of {', '.join(mode.epochs)}, not {args.model}")
    args.epochs = args.epochs or mode.epochs[args.model]
    args.sparsities, args.variants = args.sparsities or mode.sparsities, args.variants or mode.variants
    if unknown := set(args.variants) - set(mode.variants):
        parser.error(f"no variants of {args.mode}: {', '.join(sorted(unknown))}; there are {', '.join(mode.variants)}")
    return args


def run_all(args: argparse.Namespace) -> int:
    """Run what is not finished; how many failed."""
    tasks = [
        Task(args.model, args.mode, variant, sparsity, seed, args.epochs)
        for seed in args.seeds
        for variant, sparsity in product(args.variants, args.sparsities)
    ]
    todo, failed = [], 0
    for task in tasks:
        result, fault = _look_up(task, args.runs)
        if fault is not None:
            failed += 1
            print(f"{task.name}: failed: {fault}", flush=True)
        elif result is None:
            todo.append(task)
    # The dense twins first: the runs of a seed share one.
    first = [next(task for task in todo if task.seed == seed) for seed in dict.fromkeys(task.seed for task in todo)]
    batches = (first, [task for task in todo if task not in first])
    run, tell = partial(Task.run, runs=args.runs), partial(_tell, args)
    return failed + sum(run_pool(batch, run, tell, processes=args.processes) for batch in batches)


def _tell(args: argparse.Namespace, task: Task, result: dict[str, Any]) -> None:
    print(f"{task.name}: {result['test_accuracy']:.4f} (dense {result['dense_test_accuracy']:.4f})", flush=True)
    collect(args)


def collect(args: argparse.Namespace) -> None:
    """Write the results from all finished runs."""
    from methods_tables import write_results

    found: list[dict[str, Any]] = []
    for task in tasks_in(args.runs, args.model, args.mode, args.epochs):
        result, fault = _look_up(task, args.runs)
        if fault is not None and args.collect:
            print(f"{task.name}: left out: {fault}", flush=True)
        found += [] if result is None else [result]
    if found:
        write_results(args.model, args.mode, found, args.results / stem(args.model, args.mode))


def _look_up(task: Task, runs: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The result of a finished run, or why its folder's cannot be taken for it."""
    try:
        return finished(task, runs), None
    except ValueError as error:
        return None, str(error)


if __name__ == "__main__":
    main()
