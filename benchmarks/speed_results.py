"""Results of the speed benchmarks: shown as they come, and written with the machine as JSON and as a page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from quiet import measured_quietly
from setpoint.bench import Pace, Row, describe, page, ratios_tables
from setpoint.bench.training import TASKS, Task
from setpoint.methods import method_names

FOLDER = Path(__file__).parent / "results"
# Where the plain implementations are, which the tests check.
sys.path.append(str(Path(__file__).parent.parent / "tests"))


class Results:
    """The cases of one benchmark. Those measured before on this machine stay, unless they are measured again.

    Args:
        name: of the files, without ending.
        about: what the ratios are, in a paragraph.
        args: with the options of `options`.
    """

    def __init__(self, name: str, about: str, args: argparse.Namespace) -> None:
        if args.threads:
            torch.set_num_threads(args.threads)
        self.device = torch.device(args.device)
        self._about, self._patience, self._title = about, args.patience, name
        self._path = args.results / (f"{name}-cuda.json" if self.device.type == "cuda" else f"{name}.json")
        self._machine = describe()
        self._cases = self._before()
        self._console = Console(width=160)

    def _before(self) -> dict[str, dict[str, Any]]:
        if not self._path.exists():
            return {}
        found = json.loads(self._path.read_text(encoding="utf-8"))
        same = found["machine"] == self._machine
        return {case["rows"][0]["case"]: case for case in found["cases"]} if same else {}

    def add(self, measure: Callable[[], Sequence[Row]], *, timed: bool = True) -> Sequence[Row]:
        """Measure a case while others do little, show it and write all there is."""
        rows, cores = measured_quietly(measure, patience=self._patience) if timed else (measure(), None)
        for table in ratios_tables(rows):
            self._console.print(table)
        for name in dict.fromkeys(row.case for row in rows):
            each = [row.to_dict() for row in rows if row.case == name]
            self._cases[name] = {"other_cores": cores, "rows": each}
        self._write()
        return rows

    def _write(self) -> None:
        cases = list(self._cases.values())
        content = {"machine": self._machine, "device": str(self.device), "cases": cases}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        rows = [Row(**row) for case in cases for row in case["rows"]]
        text = page(self._title.replace("_", " ").capitalize(), self._about, self._place(cases), rows)
        self._path.with_suffix(".md").write_text(text, encoding="utf-8")

    def _place(self, cases: Sequence[dict[str, Any]]) -> str:
        m = self._machine
        cpu = f"{m['processor']}, {m['cores']} cores, threads: {m['threads']}"
        where = f"{m['gpu'] if self.device.type == 'cuda' else cpu}, torch {m['torch']}."
        busy = [case["other_cores"] for case in cases if case["other_cores"] is not None]
        return where + (f" Other processes used {min(busy):.1f} to {max(busy):.1f} cores meanwhile." if busy else "")


def options(about: str | None) -> argparse.ArgumentParser:
    """The options that all of them have."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of torch; by default as many as it takes")
    parser.add_argument("--repeats", type=int, default=15, help="of each work, at most")
    parser.add_argument("--seconds", type=float, default=60.0, help="after which a case begins no further round")
    parser.add_argument("--patience", type=float, default=0.0, help="seconds to wait for others to do little, a case")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder")
    return parser


def add_training(parser: argparse.ArgumentParser) -> None:
    """The options of those that train."""
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--units", nargs="+", choices=["weight", "whole"], default=["weight", "whole"])
    parser.add_argument("--methods", nargs="+", default=list(method_names()))
    parser.add_argument("--batch", type=int, help="instead of the task's, to try it out")


def trainings(args: argparse.Namespace) -> Iterator[tuple[Task, str]]:
    """What is trained, with the kind of its units."""
    for task in (TASKS[name] for name in args.tasks):
        asked = replace(task, batch=args.batch or task.batch)
        for unit in args.units:
            yield asked, asked.whole if unit == "whole" else unit


def pace(args: argparse.Namespace) -> Pace:
    return Pace(repeats=args.repeats, seconds=args.seconds)
