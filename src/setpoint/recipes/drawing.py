"""The plots of a run."""
from __future__ import annotations
from setpoint.recipes.result import RunResult
from setpoint.recipes.run_folder import RunFolder


def draw_run(folder: RunFolder, result: RunResult, shape: tuple[int, int, int]) -> None:
    """Draw."""
