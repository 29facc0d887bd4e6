"""What a GPU is asked for beside its arithmetic: operations given out, and times that the program waits for it.

No GPU is needed: the tensors are on the CPU, on a device that only counts. Beside our functions stands their eager way,
which works on every device, and beside the methods the step without one.

    python benchmarks/waiting.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

from setpoint import Schedule, Sparsifier
from setpoint.bench.inputs import resnet50
from setpoint.functional import WarmStart, device, project_budget, project_gsp, prox_group_envelope
from setpoint.methods import method_names
from setpoint.recipes.models import build_model
from speed_results import FOLDER

from pretend import DEVICE, Counts, pretended_device  # isort: skip - speed_results says where it is

SPARSITY = 0.9
STEPS, INTERVAL = 60, 10


@contextmanager
def counted(*, eager: bool = False) -> Iterator[Counts]:
    """The device, taken for a GPU, or for one that nothing is done for."""
    with patch.object(device, "TYPES", set() if eager else {DEVICE.type}), pretended_device() as counts:
        yield counts


def functions(scale: float) -> list[dict[str, Any]]:
    """Projections and the proximal map on weights shaped as ResNet-50's."""
    weights = resnet50(torch.device("cpu"), scale=scale)
    room, warm = round((1 - SPARSITY) * weights.count), WarmStart()
    works: dict[str, Callable[[Any, Any], Any]] = {
        "project_gsp": lambda w, _: project_gsp(w, SPARSITY),
        "project_gsp, unit length": lambda w, _: project_gsp(w, SPARSITY, scale_invariant=True),
        "project_gsp, from a warm start": lambda w, _: project_gsp(w, SPARSITY, warm=warm),
        "project_budget": lambda _, m: project_budget(m, room),
        "prox_group_envelope": lambda _, m: prox_group_envelope(m, room, 0.5, debias=True),
    }
    project_gsp(weights.flat, SPARSITY, warm=warm)
    rows = []
    for name, work in works.items():
        row: dict[str, Any] = {"case": weights.name, "work": name}
        for way in ("", "eager_"):
            with counted(eager=bool(way)) as counts:
                there = [t.to(DEVICE) for t in weights.flat]
                magnitudes = [t.abs() for t in there]
                counts.launches, counts.waits = 0, []
                work(there, magnitudes)
                row |= {f"{way}operations": counts.launches, f"{way}waits": len(counts.waits)}
        rows.append(row)
    return rows


def steps(unit: str) -> list[dict[str, Any]]:
    """Optimizer steps of a ResNet-20, without a method and with each."""
    return [{"case": f"ResNet-20, {unit}", "work": name, **_steps(name, unit)} for name in (None, *method_names())]


def _steps(method: str | None, unit: str) -> dict[str, int]:
    """Operations and waits of the steps, those of the forward and backward pass left out; the largest of each kind."""
    torch.manual_seed(0)
    found: dict[str, int] = {}
    with counted() as counts:
        model = build_model("resnet20", shape=(3, 32, 32), classes=10, width=0.25).to(DEVICE)
        images = torch.randn(2, 3, 32, 32, device=DEVICE)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        sparsifier = None if method is None else _sparsifier(model, optimizer, method, unit)
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(images).square().sum().backward()
            before = None if sparsifier is None else (len(sparsifier.history), sparsifier.phase)
            counts.launches, counts.waits = 0, []
            optimizer.step()
            after = None if sparsifier is None else (len(sparsifier.history), sparsifier.phase)
            kind = "" if before == after else "update_"
            for key, value in (("operations", counts.launches), ("waits", len(counts.waits))):
                found[kind + key] = max(found.get(kind + key, 0), value)
    return found


def _sparsifier(model: torch.nn.Module, optimizer: torch.optim.Optimizer, method: str, unit: str) -> Sparsifier:
    shape = "constant" if method in ("static", "set", "rigl") else "cubic"
    schedule = Schedule(shape, begin=0, end=0.75, interval=INTERVAL)
    return Sparsifier(
        model,
        optimizer,
        method=method,
        target=SPARSITY,
        unit=unit,
        steps=STEPS,
        schedule=schedule,
        nonfinite="unchecked",
    )


def table(rows: list[dict[str, Any]]) -> Table:
    """One case."""
    keys = list(dict.fromkeys(key for row in rows for key in row if key not in ("case", "work")))
    shown = Table("", *(key.replace("_", " ") for key in keys), title=rows[0]["case"])
    for row in rows:
        shown.add_row(row["work"] or "no method", *(str(row.get(key, "")) for key in keys))
    return shown


def page(cases: list[list[dict[str, Any]]]) -> str:
    """All cases in Markdown."""
    lines = ["# Waiting for a GPU", "", (__doc__ or "").split("\n\n    python")[0].strip()]
    lines += ["", "Eager: our functions with nothing done for a GPU. Update: an optimizer step in which a method acts."]
    for rows in cases:
        keys = list(dict.fromkeys(key for row in rows for key in row if key not in ("case", "work")))
        heads = " | ".join(key.replace("_", " ") for key in keys)
        lines += ["", f"## {rows[0]['case']}", "", f"| | {heads} |", "|---" * (len(keys) + 1) + "|"]
        lines += [
            f"| {row['work'] or 'no method'} | " + " | ".join(str(row.get(key, "")) for key in keys) + " |"
            for row in rows
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=0.1, help="of ResNet-50's weights: counts do not depend on it")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder")
    args = parser.parse_args()
    cases = []
    for rows in (functions(args.scale), steps("weight"), steps("row")):
        cases.append(rows)
        Console(width=160).print(table(rows))
    args.results.mkdir(parents=True, exist_ok=True)
    content = {"torch": torch.__version__, "rows": [row for rows in cases for row in rows]}
    (args.results / "waiting.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (args.results / "waiting.md").write_text(page(cases), encoding="utf-8")


if __name__ == "__main__":
    main()
