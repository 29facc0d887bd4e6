"""What sparse kernels gain: single layers over sizes, batches and sparsities, and trained networks as a whole.

`layers` times an n x n Linear against the same with zeros in it on compressed rows (CSR) and on compressed rows of
blocks (BSR, the zeros in whole blocks), against a Linear with as many rows fewer, and against int8 of the dense one.
`networks` trains LeNet-300-100 and a wider perceptron on MNIST at 95 % zeros and gives them to `use_sparse_kernels`.
All runs of a line are taken in turns. A line during which other processes were busy says so, and is measured again by
the next call; one that is done is not repeated.

    OMP_NUM_THREADS=2 python benchmarks/sparse_kernels.py
    OMP_NUM_THREADS=2 python benchmarks/sparse_kernels.py layers --sizes 1024 --batches 1
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from machine import describe
from quiet import QUIET
from sparse_layers import BLOCKS, time_layer
from sparse_networks import HIDDEN, time_network

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("zeroed", "csr", "bsr", "fewer rows", "int8")


def main() -> None:
    args = _arguments()
    layers = partial(time_layer, seconds=args.seconds, patience=args.patience)
    networks = partial(time_network, runs=args.runs, patience=args.patience)
    if args.part in ("all", "layers"):
        axes = {"n": args.sizes, "batch": args.batches, "zeros": args.zeros}
        _fill("layers", axes, layers, args.results)
    if args.part in ("all", "networks"):
        _fill("networks", {"name": list(HIDDEN), "batch": args.batches}, networks, args.results)


def _fill(part: str, axes: dict[str, list[Any]], measure: Callable[..., dict[str, Any]], folder: Path) -> None:
    """Measure the lines that are missing, and those that were disturbed: the quieter measurement stays."""
    path = folder / "sparse_kernels.json"
    for values in product(*axes.values()):
        results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        machine, key = describe(), dict(zip(axes, values))
        # Figures of another machine, or of other threads, do not stand beside these.
        if results.get(part, {}).get("machine") != machine:
            results[part] = {"machine": machine, "rows": []}
        rows = results[part]["rows"]
        old = next((row for row in rows if key.items() <= row.items()), None)
        if old is not None and _disturbance(old) <= QUIET:
            continue
        row = key | measure(**key)
        print(key, f"other processes used {_disturbance(row)} cores", flush=True)
        if old is None:
            rows.append(row)
        elif _disturbance(row) < _disturbance(old):
            rows[rows.index(old)] = row
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text("\n".join(_page(results)) + "\n")


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
    return parser.parse_args()


def _page(results: dict[str, Any]) -> list[str]:
    lines = ["# Sparse kernels", "", "Times of the dense model divided by times of the other: above 1 is faster."]
    if "layers" in results:
        lines += ["", *_layers_page(results["layers"])]
    if "networks" in results:
        lines += ["", *_networks_page(results["networks"])]
    return lines


def _machine(part: dict[str, Any]) -> str:
    m = part["machine"]
    where = f"{m['processor']}, {m['cores']} cores, {m['threads']} threads, torch {m['torch']}"
    busy = [row["other_cores"] for row in part["rows"] if row["other_cores"] is not None]
    return f"{where}. Other processes used {max(busy):.2f} cores at most during a line." if busy else f"{where}."


def _layers_page(part: dict[str, Any]) -> list[str]:
    lines = ["## Linear n x n", "", _machine(part), ""]
    lines += [
        "`zeroed`: the zeros in a dense matrix. `csr`: single weights are zero. `bsr`: whole blocks are; the best"
    ]
    lines += [f"of sides {', '.join(map(str, BLOCKS))}, in brackets. `fewer rows`: dense, with as large a part of its"]
    lines += ["rows gone. `int8`: dense, no zeros, weights in int8.", ""]
    lines += ["| n | batch | dense ms | zeros | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 4) + "|"]
    for row in part["rows"]:
        cells = [row["n"], row["batch"], f"{row['dense_ms']:.3g}", f"{100 * row['zeros']:g} %"]
        cells += [_gain(row["gains"], column) for column in COLUMNS]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _gain(gains: dict[str, float], column: str) -> str:
    if column != "bsr":
        return f"{gains[column]:.2f}"
    best = max(BLOCKS, key=lambda b: gains[f"bsr{b}"])
    return f"{gains[f'bsr{best}']:.2f} ({best})"


def _networks_page(part: dict[str, Any]) -> list[str]:
    head = ["network", "batch", "dense ms", "sparse ms", "faster", "int8", "bytes dense", "bytes sparse", "swapped"]
    head += ["accuracy dense", "sparse", "int8"]
    lines = ["## Networks on MNIST, 95 % of the weights zero (`magnitude`, 2 epochs)", "", _machine(part), ""]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in part["rows"]:
        report = row["report"]
        times = [f"{ms:.3g}" if ms else "-" for ms in (report["dense_ms"], report["ms"])]
        swapped = [f"{la['name']}: {la['chosen']}" for la in report["layers"] if la["chosen"] != "dense"]
        cells = [row["name"], row["batch"], *times, f"{report['gain']:.2f}", f"{row['int8_gain']:.2f}"]
        cells += [f"{report[name]:,}" for name in ("dense_bytes", "bytes")] + [", ".join(swapped) or "none"]
        cells += [f"{100 * accuracy:.2f} %" for accuracy in row["accuracy"].values()]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


if __name__ == "__main__":
    main()
