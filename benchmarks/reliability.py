"""What goes wrong under damage, interruption and lies, counted: the figures that must be 0 are.

Each section is a module beside this one, `reliability_NAME.py`, with a function `run(long)` that gives its counts. What
it finds goes into `results/reliability.json` under its name; the other sections there stay.

    python benchmarks/reliability.py
    python benchmarks/reliability.py --sections files --long
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from setpoint.bench import describe

HERE = Path(__file__).parent
PREFIX = "reliability_"


def sections() -> list[str]:
    """Names of the sections, which are those of the modules."""
    return sorted(path.stem.removeprefix(PREFIX) for path in HERE.glob(f"{PREFIX}*.py"))


def measured(name: str, *, long: bool) -> dict[str, Any]:
    """The counts of a section, with what they were counted on."""
    begun = time.perf_counter()
    counts = importlib.import_module(PREFIX + name).run(long)
    return {"machine": describe(), "long": long, "seconds": round(time.perf_counter() - begun), **counts}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(sections()), help="names with commas between them (all)")
    parser.add_argument("--long", action="store_true", help="more of everything, for the figures that are published")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder for reliability.json")
    args = parser.parse_args()
    args.sections = args.sections.split(",")
    for name in args.sections:
        if name not in sections():
            parser.error(f"unknown section {name!r}; possible are {', '.join(sections())}")
    return args


def main() -> None:
    args, console = parse(), Console()
    torch.set_num_threads(1)
    path = args.results / "reliability.json"
    for name in args.sections:
        console.rule(name)
        found = measured(name, long=args.long)
        console.print_json(data=found)
        # Read anew each time: another process may have written its section meanwhile.
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**before, name: found}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
