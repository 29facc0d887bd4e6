"""What all plots share: colours that colour-blind readers can tell apart, clean axes, and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

# M. Okabe, K. Ito, "Color universal design", 2008.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
COLORS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)
MARKERS = ("o", "s", "D", "^", "v", "P")
INK, FAINT, DENSE = "#222222", "#d9d9d9", "#6e6e6e"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, outside pyplot's global state."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def clean(axes: Any, *, grid: str = "y") -> None:
    """Take away what carries no figures."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(DENSE)
    axes.tick_params(colors=INK, labelsize=9, color=DENSE)
    axes.grid(axis=grid, color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def percent_axis(axis: Any, decimals: int | None = None) -> None:
    """Write fractions as percentages."""
    axis.set_major_formatter(PercentFormatter(1.0, decimals=decimals, symbol=" %"))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG; the same figure gives the same bytes."""
    figure.savefig(path, format="png", metadata={"Software": None})
