"""A layer's weights as an image, in which exact zeros cannot be taken for small values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.patches import Patch
from torch import Tensor

from setpoint.reporting.figures import INK, new_figure, save_figure
from setpoint.reporting.words import percent

Array = np.ndarray[Any, np.dtype[Any]]

_MAP = "RdBu_r"
_ZERO = "#9a9a9a"
_LARGEST = 100
_KERNELS = 240


def first_layer_plot(weight: Tensor, path: Path, *, shape: tuple[int, ...] = (), name: str = "") -> None:
    """Draw the incoming weights of each neuron, or each kernel of a convolution, as a tile; zeros are grey.

    Args:
        weight: of a Linear or convolution layer.
        path: of the PNG.
        shape: (C, H, W) of the model's inputs: a Linear weight that reads all of one is drawn in its shape.
        name: of the parameter.
    """
    tiles, what, per_row = _tiles(weight.detach().float().cpu(), shape)
    image, limit = _mosaic(tiles, per_row)
    height = 6.4 * image.shape[0] / image.shape[1] + 1.2
    figure = new_figure(7.5, min(max(height, 2.4), 10.0))
    axes = figure.subplots()
    axes.imshow(image, interpolation="nearest")
    axes.set_axis_off()
    zeros = percent(float((weight == 0).float().mean()))
    figure.suptitle(f"{name}: {what}, {zeros} zeros", fontsize=11, color=INK)
    _legend(figure, axes, limit)
    save_figure(figure, path)


def _tiles(weight: Tensor, shape: tuple[int, ...]) -> tuple[Array, str, int]:
    """Tiles (number, height, width), what they are, and how many make a row."""
    if weight.ndim == 4:
        outputs, inputs, height, width = weight.shape
        shown = max(1, min(outputs, _KERNELS // inputs))
        tiles = weight[:shown].reshape(-1, height, width).numpy()
        # Kernels of one output stay side by side.
        per_row = inputs * max(1, _columns(shown, height, width * inputs))
        return tiles, _counted(shown, outputs, "filters"), per_row
    if weight.ndim == 2 and len(shape) == 3 and weight.shape[1] == math.prod(shape):
        channels, height, width = shape
        shown = min(len(weight), _LARGEST)
        # The channels of one neuron side by side.
        per_row = _columns(shown, height, width * channels)
        if shown < len(weight):
            shown -= shown % per_row  # whole rows
        tiles = weight[:shown].reshape(shown, channels, height, width).permute(0, 2, 1, 3).reshape(shown, height, -1)
        return tiles.numpy(), _counted(shown, len(weight), "neurons"), per_row
    return weight.reshape(1, len(weight), -1).numpy(), "the whole matrix", 1


def _counted(shown: int, total: int, what: str) -> str:
    return f"all {total} {what}" if shown == total else f"the first {shown} of {total} {what}"


def _columns(count: int, height: int, width: int) -> int:
    """How many tiles make a row, so that the whole is about three wide by two high."""
    return max(1, min(count, round(math.sqrt(1.5 * count * (height + 1) / (width + 1)))))


def _mosaic(tiles: Array, per_row: int) -> tuple[Array, float]:
    """An RGB image of all tiles with white lines between them, and the weight at the ends of the colour scale."""
    count, height, width = tiles.shape
    # A few outliers must not bleach all the others.
    limit = float(np.quantile(np.abs(tiles[tiles != 0]), 0.99)) if (tiles != 0).any() else 1.0
    rows = -(-count // per_row)
    image = np.ones((rows * (height + 1) - 1, per_row * (width + 1) - 1, 3))
    colors = colormaps[_MAP](Normalize(-limit, limit, clip=True)(tiles))[..., :3]
    colors[tiles == 0] = to_rgb(_ZERO)
    for index, tile in enumerate(colors):
        top, left = index // per_row * (height + 1), index % per_row * (width + 1)
        image[top : top + height, left : left + width] = tile
    return image, limit


def _legend(figure: Any, axes: Any, limit: float) -> None:
    scale = ScalarMappable(Normalize(-limit, limit), _MAP)
    bar = figure.colorbar(
        scale, ax=axes, orientation="horizontal", shrink=0.6, pad=0.02, aspect=40, extend="both", label="weight"
    )
    bar.ax.tick_params(labelsize=8)
    zero = Patch(color=_ZERO, label="exactly zero")
    bar.ax.legend(handles=[zero], loc="center left", bbox_to_anchor=(1.04, 0.5), fontsize=9, frameon=False)
