"""A user's own images: one folder a class, with or without a division into train and test."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from setpoint.recipes.data.dataset import Collection, DataError, Split
from setpoint.recipes.data.images import channels_first, open_rgb

_SUFFIXES = (".png", ".jpg", ".jpeg")
_TEST_SHARE = 0.2


def load_image_folder(folder: Path, *, image_size: int) -> Collection:
    """Read ``folder/train/<class>/*`` and ``folder/test/<class>/*``, or ``folder/<class>/*``.

    Where there is no ``test`` folder, a fifth of each class is set aside, chosen by a hash of the file names: the same
    images in every run and on every machine. Images become RGB and are resized, without keeping their proportions.

    Args:
        folder: A folder of PNG or JPEG files in class folders; other files are ignored.
        image_size: Height and width of the inputs.

    Returns:
        The collection, named after the folder, with inputs of shape (N, 3, image_size, image_size).

    Raises:
        DataError: If there are fewer than two classes, a class is empty, or a file is not a readable image.
    """
    if image_size < 1:
        raise DataError(f"image_size={image_size} was asked for; at least 1 pixel is possible")
    train_root = folder / "train" if (folder / "train").is_dir() else folder
    train = _class_files(train_root)
    classes = tuple(train)
    if train_root != folder and (folder / "test").is_dir():
        test = _class_files(folder / "test")
        _check_same_classes(classes, tuple(test), folder)
    else:
        train, test = _set_aside(train)
    return Collection(
        name=folder.resolve().name,
        train=_read_split(train, classes, image_size),
        test=_read_split(test, classes, image_size),
        classes=classes,
        augmentation="flip_crop",
    )


def _class_files(root: Path) -> dict[str, list[Path]]:
    """Return the image files of each class folder, both in the order of their names."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = {folder.name: _image_files(folder) for folder in folders}
    empty = [name for name, paths in files.items() if not paths]
    if len(files) < 2:
        raise DataError(f"{str(root)!r} has {len(files)} class folders; at least 2, with PNG or JPEG files, are needed")
    if empty:
        raise DataError(f"{str(root)!r}: no PNG or JPEG files in the class folders {', '.join(empty)}")
    return files


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
    )


def _check_same_classes(train: tuple[str, ...], test: tuple[str, ...], folder: Path) -> None:
    if train != test:
        different = ", ".join(sorted(set(train) ^ set(test)))
        raise DataError(f"{str(folder)!r}: train and test must have the same classes; only one of them has {different}")


def _set_aside(files: dict[str, list[Path]]) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Divide the files of each class into training and test files."""
    train, test = {}, {}
    for name, paths in files.items():
        if len(paths) < 2:
            raise DataError(
                f"class {name!r} has 1 image; at least 2 are needed, so that 1 can be set aside for testing"
            )
        count = max(1, round(_TEST_SHARE * len(paths)))
        ranked = sorted(paths, key=_name_hash)
        test[name], train[name] = sorted(ranked[:count]), sorted(ranked[count:])
    return train, test


def _name_hash(path: Path) -> bytes:
    return hashlib.sha256(path.name.encode()).digest()


def _read_split(files: dict[str, list[Path]], classes: tuple[str, ...], size: int) -> Split:
    pixels = [_read_image(path, size) for name in classes for path in files[name]]
    labels = [index for index, name in enumerate(classes) for _ in files[name]]
    return Split(torch.from_numpy(np.stack(pixels)), torch.tensor(labels, dtype=torch.int64))


def _read_image(path: Path, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the pixels of an image, uint8 of shape (3, size, size)."""
    image = open_rgb(path, str(path))
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return channels_first(image)
