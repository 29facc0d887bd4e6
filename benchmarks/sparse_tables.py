"""The results of `sparse_kernels.py` as a page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sparse_layers import BLOCKS

COLUMNS = ("zeroed", "csr", "bsr", "fewer rows", "int8")
CLOCKS = {"wall": "wall-clock time", "cpu": "CPU time of one thread"}


def page(results: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown: a table for each part, machine, number of threads and clock."""
    yield "# Sparse kernels"
    yield ""
    yield "Time of the dense model divided by the time of the other, the median of runs in turns: above 1 is faster."
    for section in sorted(results, key=lambda s: (s["part"], -s["machine"]["threads"])):
        yield ""
        yield from (_layers(section) if section["part"] == "layers" else _networks(section))


def _heading(section: dict[str, Any], title: str) -> Iterator[str]:
    m = section["machine"]
    yield f"## {title}, threads: {m['threads']}"
    yield ""
    where = f"{m['processor']}, {m['cores']} cores, torch {m['torch']}; {CLOCKS[section['clock']]}."
    busy = [row["other_cores"] for row in section["rows"] if row["other_cores"] is not None]
    yield where + (f" Other processes used {min(busy):.1f} to {max(busy):.1f} cores meanwhile." if busy else "")
    yield ""


def _layers(section: dict[str, Any]) -> Iterator[str]:
    yield from _heading(section, "Linear n x n")
    yield "`zeroed`: the zeros in a dense matrix. `csr`: single weights are zero, on compressed rows. `bsr`: blocks are"
    yield f"zero, the best of sides {', '.join(map(str, BLOCKS))}, in brackets. `fewer rows`: dense, and as large a"
    yield "part of its rows gone. `int8`: dense, no zeros, weights in int8."
    yield ""
    yield "| n | batch | dense ms | zeros | " + " | ".join(COLUMNS) + " |"
    yield "|---" * (len(COLUMNS) + 4) + "|"
    for row in sorted(section["rows"], key=lambda row: (row["n"], row["batch"], row["zeros"])):
        cells = [row["n"], row["batch"], f"{row['dense_ms']:.3g}", f"{100 * row['zeros']:g} %"]
        cells += [_gain(row["gains"], column) for column in COLUMNS]
        yield "| " + " | ".join(map(str, cells)) + " |"


def _gain(gains: dict[str, float], column: str) -> str:
    if column != "bsr":
        return f"{gains[column]:.2f}"
    best = max(BLOCKS, key=lambda b: gains[f"bsr{b}"])
    return f"{gains[f'bsr{best}']:.2f} ({best})"


def _networks(section: dict[str, Any]) -> Iterator[str]:
    yield from _heading(section, "Networks on MNIST, 95 % of the weights zero (`magnitude`, 2 epochs)")
    head = ["network", "batch", "dense ms", "sparse ms", "faster", "int8", "bytes dense", "sparse", "swapped"]
    head += ["test accuracy dense", "sparse", "int8"]
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    for row in section["rows"]:
        report = row["report"]
        times = [f"{ms:.3g}" if ms else "-" for ms in (report["dense_ms"], report["ms"])]
        swapped = [f"{layer['name']}: {layer['chosen']}" for layer in report["layers"] if layer["chosen"] != "dense"]
        cells = [row["name"], row["batch"], *times, f"{report['gain']:.2f}", f"{row['int8_gain']:.2f}"]
        cells += [f"{report[name]:,}" for name in ("dense_bytes", "bytes")] + [", ".join(swapped) or "none"]
        cells += [f"{100 * accuracy:.2f} %" for accuracy in row["accuracy"].values()]
        yield "| " + " | ".join(map(str, cells)) + " |"
