"""What models cost, side by side."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table

from setpoint.deploy.measure import Measurement
from setpoint.reporting.words import size


def costs_table(costs: Mapping[str, Measurement]) -> Table:
    """A column for each model; those after the first with their ratio to it.

    Args:
        costs: by the models' names.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("")
    for name in costs:
        table.add_column(name, justify="right")
    each = list(costs.values())
    table.add_row("parameters", *_cells([m.parameters for m in each], lambda v: f"{v:,.0f}"))
    if any(m.nonzero != m.parameters for m in each):
        table.add_row("not zero", *_cells([m.nonzero for m in each], lambda v: f"{v:,.0f}"))
    table.add_row("FLOPs, one example", *_cells([m.flops for m in each], lambda v: f"{v:,.0f}"))
    table.add_row("in memory", *_cells([m.bytes for m in each], lambda v: size(int(v))))
    for batch in each[0].latency_ms:
        times = [m.latency_ms[batch] for m in each]
        table.add_row(f"latency, batch {batch}", *_cells(times, lambda v: f"{v:.3g} ms"))
    for batch in each[0].onnx_latency_ms:
        times = [m.onnx_latency_ms[batch] for m in each]
        table.add_row(f"onnxruntime, batch {batch}", *_cells(times, lambda v: f"{v:.3g} ms"))
    return table


def _cells(values: list[float], words: object) -> list[str]:
    assert callable(words)
    first = values[0]
    return [words(v) if i == 0 or not first else f"{words(v)} ({v / first:.2f}x)" for i, v in enumerate(values)]
