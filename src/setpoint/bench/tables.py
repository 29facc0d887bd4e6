"""Rows of figures as tables: on a terminal, and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich import box
from rich.table import Table

from setpoint.bench.work import Row


def ratios_tables(rows: Sequence[Row]) -> Iterator[Table]:
    """A table for each case: every ratio with what it is against. The rows of a case follow one another."""
    for case, each in groupby(rows, key=lambda row: row.case):
        table = Table(title=case, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
        table.add_column("")
        table.add_column("ratio", justify="right")
        table.add_column("against")
        table.add_column("ms", justify="right")
        table.add_column("and")
        for row in each:
            table.add_row(*_cells(row))
        yield table


def page(title: str, about: str, place: str, rows: Sequence[Row]) -> str:
    """All rows in Markdown, a table for each case.

    Args:
        title: of the page.
        about: what the ratios are, in a paragraph.
        place: where they were measured, in words.
        rows: those of a case follow one another.
    """
    return "\n".join(_lines(title, about, place, rows)) + "\n"


def _lines(title: str, about: str, place: str, rows: Sequence[Row]) -> Iterator[str]:
    yield from (f"# {title}", "", about, "", f"Measured on {place}")
    for case, each in groupby(rows, key=lambda row: row.case):
        yield from ("", f"## {case}", "", "| | ratio | against | ms | and |", "|---|---|---|---|---|")
        for row in each:
            yield "| " + " | ".join(_cells(row)) + " |"


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    return row.work, ratio_text(row.ratio), row.against, _milliseconds(row.ms), _aside(row)


def ratio_text(ratio: float | None) -> str:
    """A ratio with three figures or so; a dash where there is none."""
    if ratio is None:
        return "-"
    return f"{ratio:,.0f}" if abs(ratio) >= 100 else f"{ratio:.1f}" if abs(ratio) >= 10 else f"{ratio:.3f}"


def _milliseconds(ms: float | None) -> str:
    return "" if ms is None else f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def _aside(row: Row) -> str:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in row.figures.items())
    return "; ".join(part for part in (figures, row.note) if part)
