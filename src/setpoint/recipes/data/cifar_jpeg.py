"""CIFAR-10 as JPEG files: two archives with one folder a class. Smaller than the original, and not the same pixels."""

import io
import logging
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from setpoint.recipes.data.archives import open_tar, read_gzip, read_member
from setpoint.recipes.data.dataset import Collection, DataError, Split
from setpoint.recipes.data.decoded import Arrays, decoded_once
from setpoint.recipes.data.files import missing_data
from setpoint.recipes.data.images import channels_first, open_rgb

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar10-jpeg"
JPEG_ARCHIVES = f"{FOLDER}/{{train,test}}.tar.gz"
_SIZE = (32, 32)

logger = logging.getLogger(__name__)


def has_jpeg(folder: Path) -> bool:
    """Say whether both archives lie in the data folder."""
    return all(path.is_file() for path in _archives(folder))


def load_cifar10_jpeg(folder: Path) -> Collection:
    """Read the two archives; their decoded pixels are kept in the user's cache.

    Args:
        folder: The data folder.

    Raises:
        DataError: If an archive is missing, damaged, or holds anything but 32x32 images of the ten classes.
    """
    if not has_jpeg(folder):
        raise missing_data("cifar10-jpeg", folder, [JPEG_ARCHIVES], download=False)
    train, test = (_split(archive) for archive in _archives(folder))
    return Collection("cifar10-jpeg", train, test, CLASSES, "flip_crop")


def _archives(folder: Path) -> tuple[Path, Path]:
    return folder / FOLDER / "train.tar.gz", folder / FOLDER / "test.tar.gz"


def _split(archive: Path) -> Split:
    arrays = decoded_once(archive, f"{FOLDER}-{archive.name.removesuffix('.tar.gz')}", _decode)
    return Split(torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]))


def _decode(archive: Path) -> Arrays:
    """Return ``images`` (N, 3, 32, 32) uint8 and ``labels`` (N,) int64, in the order of the file names."""
    logger.info("decoding %s, once", archive)
    # Unpacked whole, because only a gzip stream read to its end has its checksum verified.
    content = read_gzip(archive)
    with open_tar(content, archive) as tar:
        members = sorted((member for member in tar if member.isfile()), key=lambda member: member.name)
        pixels = [_pixels(tar, member, archive) for member in members]
    if not pixels:
        raise DataError(f"{str(archive)!r} holds no images")
    labels = [_label(member.name, archive) for member in members]
    return {"images": np.stack(pixels), "labels": np.array(labels, dtype=np.int64)}


def _label(name: str, archive: Path) -> int:
    class_name = PurePosixPath(name).parent.name
    if class_name not in CLASSES:
        raise DataError(f"{str(archive)!r}: {name!r} lies in none of the folders {', '.join(CLASSES)}")
    return CLASSES.index(class_name)


def _pixels(tar: tarfile.TarFile, member: tarfile.TarInfo, archive: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    content = read_member(tar, member, archive)
    image = open_rgb(io.BytesIO(content), f"{archive}:{member.name}")
    if image.size != _SIZE:
        raise DataError(f"{str(archive)!r}: {member.name!r} has {image.size} pixels; CIFAR-10 has {_SIZE}")
    return channels_first(image)
