"""Decoding image files."""

from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from setpoint.recipes.data.dataset import DataError


def open_rgb(source: Path | IO[bytes], title: str) -> Image.Image:
    """Return an image as RGB, upright as its EXIF data say.

    Args:
        source: A file, or its path.
        title: What to call it in an error.

    Raises:
        DataError: If it is not an image, or damaged.
    """
    try:
        with Image.open(source) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{title!r} is not a readable image: {error}") from error


def channels_first(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the pixels of an RGB image, uint8 of shape (3, H, W)."""
    pixels = np.asarray(image, dtype=np.uint8)
    return np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
