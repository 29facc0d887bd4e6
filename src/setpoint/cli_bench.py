"""The command `setpoint bench`."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Literal

from rich.console import Console

Part = Literal["projection", "step", "update", "memory", "scaling", "all"]


def bench(part: Part = "all", *, json: Path | None = None, device: str = "cpu", scale: float = 0.25) -> None:
    """Measure what the library costs on this machine, as ratios of things timed in turns.

    Projections against one pass over the weights (torch.dot of each tensor with itself) and against torch's own
    selections; a training step with each method against the dense step; what an update adds to the optimizer's step of
    a model that is mostly weights, in such passes; memory against that of the parameters; and the growth of time with
    size. Takes about a minute in all.

    Args:
        part: what to measure.
        json: file for the figures.
        device: to measure on, cpu or cuda.
        scale: of the sizes; 1 is all of ResNet-50's weights.
    """
    import torch

    from setpoint.bench import describe, ratios_tables
    from setpoint.bench.short import short
    from setpoint.recipes.defaults import device_named

    if json is not None and not json.parent.is_dir():
        raise ValueError(f"{json.parent} is no folder: make it, or name another file than {json}")
    place, console = torch.device(device_named(device)), Console()
    rows = []
    for case in short(part, place, scale=scale):
        for table in ratios_tables(case):
            console.print(table)
        rows += case
    if json is not None:
        figures = {"machine": describe(), "device": str(place), "rows": [row.to_dict() for row in rows]}
        json.write_text(dumps(figures, indent=1) + "\n", encoding="utf-8")
        console.print(f"figures: {json}", highlight=False, soft_wrap=True)
