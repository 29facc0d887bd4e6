"""What sparse kernels gain: single layers over sizes, batches and sparsities, and trained networks as a whole.

`layers` times an n x n Linear against the same with zeros in it on compressed rows (CSR) and on compressed rows of
blocks (BSR, the zeros in whole blocks), against a Linear with as many rows fewer, and against int8 of the dense one.
`networks` trains LeNet-300-100 and a wider perceptron on MNIST at 95 % zeros and gives them to `use_sparse_kernels`.
All runs of a line are taken in turns. A line during which other processes were busy says so, and is measured again by
the next call; one that is done is not repeated.

    OMP_NUM_THREADS=2 python benchmarks/sparse_kernels.py
    OMP_NUM_THREADS=1 python benchmarks/sparse_kernels.py layers --sizes 1024 --clock cpu
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from quiet import QUIET
from setpoint.bench.machine import describe
from setpoint.deploy.kernels import Race
from sparse_layers import time_layer
from sparse_networks import HIDDEN, time_network
from sparse_tables import page

RESULTS = Path(__file__).parent / "results"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    args = _arguments()
    race = Race(args.seconds, clock=CLOCKS[args.clock])
    layers = partial(time_layer, race=race, patience=args.patience)
    networks = partial(time_network, runs=args.runs, race=race, patience=args.patience)
    if args.part in ("all", "layers"):
        axes = {"n": args.sizes, "batch": args.batches, "zeros": args.zeros}
        _fill("layers", axes, layers, args)
    if args.part in ("all", "networks"):
        _fill("networks", {"name": list(HIDDEN), "batch": args.batches}, networks, args)


def _fill(
    part: str, axes: dict[str, list[Any]], measure: Callable[..., dict[str, Any]], args: argparse.Namespace
) -> None:
    """Measure the lines that are missing, and those that were disturbed: the quieter measurement stays."""
    path = args.results / "sparse_kernels.json"
    for values in product(*axes.values()):
        results: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
        rows = _rows(results, {"part": part, "clock": args.clock, "machine": describe()})
        key = dict(zip(axes, values))
        old = next((row for row in rows if key.items() <= row.items()), None)
        if old is not None and (args.clock == "cpu" or _disturbance(old) <= QUIET):
            continue
        row = key | measure(**key)
        print(key, f"other processes used {_disturbance(row)} cores", flush=True)
        if old is None:
            rows.append(row)
        elif _disturbance(row) < _disturbance(old):
            rows[rows.index(old)] = row
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text("\n".join(page(results)) + "\n")


def _rows(results: list[dict[str, Any]], where: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of what was measured there: other machines, numbers of threads and clocks have tables of their own."""
    section = next((s for s in results if where.items() <= s.items()), None)
    if section is None:
        section = where | {"rows": []}
        results.append(section)
    rows: list[dict[str, Any]] = section["rows"]
    return rows


def _disturbance(row: dict[str, Any]) -> float:
    return float(row["other_cores"] or 0.0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["all", "layers", "networks"], nargs="?", default="all")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--zeros", type=float, nargs="+", default=[0.5, 0.8, 0.9, 0.95, 0.99])
    parser.add_argument("--seconds", type=float, default=1.0, help="of each race")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait at a line for a quiet machine")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/sparse-kernels"), help="trained networks")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu, on a busy machine, for one thread")
    args = parser.parse_args()
    if args.clock == "cpu" and torch.get_num_threads() != 1:
        parser.error("the cpu clock adds up all threads: set OMP_NUM_THREADS=1")
    return args


if __name__ == "__main__":
    main()
