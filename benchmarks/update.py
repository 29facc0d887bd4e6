"""What each method adds to an optimizer step of a model that is mostly weights: stacks of Linear layers, 101 M to 1 B.

Steps with the method and without take turns, on gradients that are set by hand; what the method adds is given in passes
over the weights. Memory is that of processes of their own. What is measured is written at once: a call measures what is
missing, and again what other processes disturbed, of which the quieter one stays. Delete `results/update.json` to begin
anew. The table of docs/speed.md is filled from the results.

`--train SIZE METHOD` takes ten steps of training instead, with forward and backward pass and an update at each; the
method `dense` is none.

    OMP_NUM_THREADS=1 python benchmarks/update.py
    OMP_NUM_THREADS=1 python benchmarks/update.py --sizes 101M --units row --methods gsp magnitude
    OMP_NUM_THREADS=1 python benchmarks/update.py --train 1B gsp
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from quiet import QUIET, measured_quietly
from setpoint.bench import Pace, describe
from setpoint.bench.stack import Stack
from setpoint.bench.update import PEAK, update_cost, update_peak
from setpoint.methods import method_names
from update_tables import RESULTS, fill_docs, page
from update_training import train

SIZES = {"101M": Stack(24, 2048), "403M": Stack(24, 4096), "1B": Stack(15, 8192)}
KEYS = ("size", "unit", "method")


def main() -> None:
    args = _arguments()
    if args.train:
        size, method = args.train
        for unit in args.units[:1]:
            key = dict(zip(KEYS, (size, unit, method)))
            _measure("trainings", key, partial(_trained, args, key), args)
        return
    for values in product(args.sizes, args.units, args.methods):
        key = dict(zip(KEYS, values))
        _measure("rows", key, partial(_cost, args, key), args)


def _cost(args: argparse.Namespace, key: dict[str, str]) -> dict[str, Any]:
    stack, unit, method = args.stacks[key["size"]], key["unit"], key["method"]
    pace = Pace(repeats=args.repeats, seconds=args.seconds)
    (row,), cores = measured_quietly(partial(update_cost, stack, unit, [method], pace), patience=args.patience)
    peak = update_peak(stack, unit, method)
    if peak is not None:
        row = replace(row, figures={**row.figures, PEAK: peak})
    return {"other_cores": cores, **row.to_dict()}


def _needed(args: argparse.Namespace, key: dict[str, str]) -> float | None:
    """Bytes, as a smaller stack took them: weights, gradients, and what the method holds beyond them."""
    peaks = [
        row["figures"][PEAK]
        for row in _read(args.results)["rows"]
        if (row["unit"], row["method"]) == (key["unit"], key["method"]) and PEAK in row["figures"]
    ]
    return (2.2 + max(peaks)) * args.stacks[key["size"]].bytes if peaks else None


def _available() -> int | None:
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)


def _trained(args: argparse.Namespace, key: dict[str, str]) -> dict[str, Any]:
    method = None if key["method"] == "dense" else key["method"]
    return asdict(train(args.stacks[key["size"]], key["unit"], method))


def _measure(part: str, key: dict[str, str], measure: Callable[[], dict[str, Any]], args: argparse.Namespace) -> None:
    """Measure what is missing here or was disturbed; a training is always measured anew."""
    old = _found(_read(args.results)[part], key)
    here = describe()
    same = old is not None and old["machine"] == here
    if part == "rows" and old is not None and same and (args.missing or _disturbance(old) <= QUIET):
        return
    needed, there = _needed(args, key), _available()
    if needed is not None and there is not None and needed > there:
        sizes = f"it takes about {needed / 1e9:.0f} GB and {there / 1e9:.0f} are free"
        print(f"{' '.join(key.values())}: left out, {sizes}", flush=True)
        return
    row = {**key, "machine": here, **measure()}
    print(json.dumps({name: value for name, value in row.items() if name != "machine"}), flush=True)
    content = _read(args.results)
    rows = content[part]
    if old is None:
        rows.append(row)
    elif not same or _disturbance(row) <= _disturbance(old):
        rows[rows.index(old)] = row
    _write(content, args)


def _found(rows: list[dict[str, Any]], key: dict[str, str]) -> dict[str, Any] | None:
    return next((row for row in rows if key.items() <= row.items()), None)


def _disturbance(row: dict[str, Any]) -> float:
    return float(row.get("other_cores") or 0.0)


def _read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    path = folder / "update.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": [], "trainings": []}


def _write(content: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> None:
    order = [list(SIZES), ["weight", "row"], [*method_names(), "dense"]]
    for rows in content.values():
        rows.sort(key=lambda row: [each.index(row[name]) for name, each in zip(KEYS, order)])
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "update.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (args.results / "update.md").write_text(page(content), encoding="utf-8")
    if args.results == RESULTS:
        fill_docs()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--units", nargs="+", choices=["weight", "row"], default=["weight", "row"])
    parser.add_argument("--methods", nargs="+", choices=list(method_names()), default=list(method_names()))
    parser.add_argument("--train", nargs=2, metavar=("SIZE", "METHOD"), help="of the first of --units")
    parser.add_argument("--repeats", type=int, default=5, help="of each step, at most")
    parser.add_argument("--seconds", type=float, default=60.0, help="after which a phase begins no further round")
    parser.add_argument("--patience", type=float, default=0.0, help="seconds to wait for others to do little, a row")
    parser.add_argument("--missing", action="store_true", help="measure nothing again")
    parser.add_argument("--threads", type=int, help="of torch; by default as many as it takes")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of weights, to try it out")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder")
    args = parser.parse_args()
    if args.train and (args.train[0] not in SIZES or args.train[1] not in ("dense", *method_names())):
        parser.error(f"--train takes one of {', '.join(SIZES)} and a method or dense")
    if args.scale != 1.0 and args.results == RESULTS:
        parser.error("figures of other sizes take another folder: --results")
    if args.threads:
        torch.set_num_threads(args.threads)
    args.stacks = {name: stack.scaled(args.scale) for name, stack in SIZES.items()}
    return args


if __name__ == "__main__":
    main()
