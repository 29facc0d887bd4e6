"""Tables of what an update costs, from the committed results; called, it writes `results/update.md` and fills the table
of docs/speed.md.

python benchmarks/update_tables.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setpoint.bench import Row
from setpoint.bench import page as ratios_page
from setpoint.bench.tables import ratio_text
from setpoint.bench.update import BETWEEN, DENSE, FROZEN, PEAK, UPDATE

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs" / "speed.md"
BEGIN, END = "<!-- the table of updates -->", "<!-- the end of the table of updates -->"

ABOUT = (
    "What a method adds to the optimizer's step, in passes over the weights (`torch.dot(w, w)` of every layer), timed "
    "in turns with the dense step of SGD, at 90 %. The ratio is that of a step with an update, or of any step where "
    "there are none; the figures are those of single steps. `dense step` is what it is added to, and `resident` how "
    "far the resident set rises beyond that of dense steps, as a multiple of the weights' bytes, updates and the "
    "freeze included."
)

Content = dict[str, list[dict[str, Any]]]


def page(content: Content) -> str:
    """All figures in Markdown."""
    rows = content["rows"]
    ratios = [Row(**{name: row[name] for name in Row.__dataclass_fields__}) for row in rows]
    text = ratios_page("Update", ABOUT, "; ".join(_places(rows)) + _others(rows), ratios)
    return "\n".join([text.rstrip("\n"), *_trainings(content["trainings"])]) + "\n"


def docs_table(content: Content) -> list[str]:
    """The lines of docs/speed.md between the marks."""
    rows = content["rows"]
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    heads = ["", "units", *(f"update, {size}" for size in sizes), "between", "frozen", "memory"]
    lines = [f"On {'; '.join(_places(rows))}{_others(rows)}", "", _line(heads), "|---" * len(heads) + "|"]
    for unit in dict.fromkeys(row["unit"] for row in rows):
        for method in dict.fromkeys(row["method"] for row in rows if row["unit"] == unit):
            each = {row["size"]: row for row in rows if (row["unit"], row["method"]) == (unit, method)}
            first = next(iter(each.values()))["figures"]
            updates = [each[size]["figures"].get(UPDATE) if size in each else None for size in sizes]
            cells = [*updates, first[BETWEEN], first[FROZEN], first.get(PEAK)]
            lines.append(_line([f"`{method}`", unit, *map(_cell, cells)]))
    lines += ["", f"The dense step that this is added to takes {_dense(rows)}."] if rows else []
    return [*lines, *_trainings(content["trainings"])]


def _dense(rows: list[dict[str, Any]]) -> str:
    """Passes of the dense step, without forward and backward pass and with them."""
    steps = [row["figures"][DENSE] for row in rows if not row["note"]]
    trained = [row["figures"][DENSE] for row in rows if row["note"]]
    words = [f"{min(steps):.1f} to {max(steps):.1f} passes"] if steps else []
    if trained:
        words.append(f"with forward and backward pass, as for `l0`, {min(trained):.0f} to {max(trained):.0f}")
    return ", and ".join(words)


def fill_docs() -> None:
    """Write the table into the docs."""
    text = DOCS.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    lines = "\n".join(docs_table(committed()))
    DOCS.write_text(f"{before}{BEGIN}\n{lines}\n{END}{after}", encoding="utf-8")


def committed() -> Content:
    """The results in the repository."""
    found: Content = json.loads((RESULTS / "update.json").read_text(encoding="utf-8"))
    return found


def _trainings(rows: list[dict[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    heads = ["", "weights", "units", "seconds a step", "GB in all"]
    yield from ("", "Ten steps of training, forward and backward pass included, with an update at each:", "")
    yield from (_line(heads), "|---" * len(heads) + "|")
    for row in rows:
        dense = row["method"] == "dense"
        peak = "-" if row["peak_gb"] is None else f"{row['peak_gb']:.1f}"
        name, unit = ("dense", "") if dense else (f"`{row['method']}`", row["unit"])
        yield _line([name, row["size"], unit, f"{row['seconds_a_step']:.3g}", peak])


def _places(rows: list[dict[str, Any]]) -> list[str]:
    machines = [row["machine"] for row in rows]
    words = [f"{m['processor']}, threads: {m['threads']}, torch {m['torch']}" for m in machines]
    return list(dict.fromkeys(words))


def _others(rows: list[dict[str, Any]]) -> str:
    busy = [row["other_cores"] for row in rows if row["other_cores"] is not None]
    return f". Other processes used {min(busy):.1f} to {max(busy):.1f} cores meanwhile." if busy else "."


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return ratio_text(value) if abs(value) >= 10 else f"{value:.1f}"


def main() -> None:
    (RESULTS / "update.md").write_text(page(committed()), encoding="utf-8")
    fill_docs()


if __name__ == "__main__":
    main()
