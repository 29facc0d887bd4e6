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
# Beyond these many weights, or these many tiles, none could be told from its neighbours.
_MOST_WEIGHTS, _MOST_TILES, _FEWEST_TILES = 80_000, 100, 12


def first_layer_plot(weight: Tensor, path: Path, *, shape: tuple[int, ...] = (), name: str = "") -> None:
    """Draw the incoming weights of each neuron or filter as a tile, its channels side by side; zeros are grey.

    Args:
        weight: of a Linear or convolution layer.
        path: of the PNG.
        shape: (C, H, W) of the model's inputs: a Linear weight that reads all of one is drawn in its shape.
        name: of the parameter.
    """
    tiles, what = _tiles(weight.detach().float().cpu(), shape)
    shown, per_row = _arrange(tiles)
    image, limit = _mosaic(tiles[:shown], per_row)
    amount = f"all {len(tiles)} {what}" if shown == len(tiles) else f"the first {shown} of {len(tiles)} {what}"
    zeros = percent(float((weight == 0).float().mean()))
    figure = new_figure(7.5, min(max(6.4 * image.shape[0] / image.shape[1] + 1.2, 2.4), 10.0))
    axes = figure.subplots()
    axes.imshow(image, interpolation="nearest")
    axes.set_axis_off()
    figure.suptitle(f"{name}: {amount if what else 'the whole matrix'}, {zeros} zeros", fontsize=11, color=INK)
    _legend(figure, axes, limit)
    save_figure(figure, path)


def _tiles(weight: Tensor, shape: tuple[int, ...]) -> tuple[Array, str]:
    """Tiles (number, channels, height, width), and what they are."""
    if weight.ndim == 4:
        return weight.numpy(), "filters"
    if weight.ndim == 2 and len(shape) == 3 and weight.shape[1] == math.prod(shape):
        return weight.reshape(-1, *shape).numpy(), "neurons"
    return weight.reshape(1, 1, len(weight), -1).numpy(), ""


def _arrange(tiles: Array) -> tuple[int, int]:
    """How many tiles are shown, and how many in a row, so that the whole is about three wide by two high."""
    count, channels, height, width = tiles.shape
    shown = min(count, max(_FEWEST_TILES, min(_MOST_TILES, _MOST_WEIGHTS // tiles[0].size)))
    per_row = max(1, min(shown, round(math.sqrt(1.5 * shown * (height + 1) / (width * channels + 1)))))
    return (count if shown == count else shown - shown % per_row), per_row


def _mosaic(tiles: Array, per_row: int) -> tuple[Array, float]:
    """An RGB image of all tiles on white, and the weight at the ends of the colour scale."""
    # A few outliers must not bleach all the others.
    limit = float(np.quantile(np.abs(tiles[tiles != 0]), 0.99)) if (tiles != 0).any() else 1.0
    colors = colormaps[_MAP](Normalize(-limit, limit, clip=True)(tiles), bytes=True)[..., :3]
    colors[tiles == 0] = np.round(255 * np.array(to_rgb(_ZERO)))
    # Pixels a weight: enough to draw the lines between channels thinner than a weight.
    scale = 6 if tiles.shape[-1] <= 12 else 3 if tiles.shape[-1] <= 100 else 1
    colors = colors.repeat(scale, axis=2).repeat(scale, axis=3)
    strips = np.stack([_side_by_side(channels, max(1, scale // 3)) for channels in colors])
    rows = [_side_by_side(strips[i : i + per_row], scale) for i in range(0, len(strips), per_row)]
    full = np.full_like(rows[0], 255)
    full[:, : rows[-1].shape[1]] = rows[-1]
    stacked = np.stack([*rows[:-1], full]).transpose(0, 2, 1, 3)
    return _side_by_side(stacked, scale).transpose(1, 0, 2), limit


def _side_by_side(images: Array, gap: int) -> Array:
    """Join images (number, height, width, 3) along their width, with white between them."""
    space = np.full((*images.shape[:2], gap, 3), 255, dtype=images.dtype)
    joined = np.concatenate([images, space], axis=2)
    return np.concatenate(list(joined), axis=1)[:, :-gap]


def _legend(figure: Any, axes: Any, limit: float) -> None:
    scale = ScalarMappable(Normalize(-limit, limit), _MAP)
    bar = figure.colorbar(
        scale, ax=axes, orientation="horizontal", shrink=0.6, pad=0.02, aspect=40, extend="both", label="weight"
    )
    bar.ax.tick_params(labelsize=8)
    zero = Patch(color=_ZERO, label="exactly zero")
    bar.ax.legend(handles=[zero], loc="center left", bbox_to_anchor=(1.04, 0.5), fontsize=9, frameon=False)
