"""CIFAR-10 as published: six pickled batches, in an archive or unpacked."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from setpoint.recipes.data.archives import open_tar, read_member
from setpoint.recipes.data.cifar_jpeg import CLASSES, JPEG_ARCHIVES, has_jpeg, load_cifar10_jpeg
from setpoint.recipes.data.dataset import Collection, DataError, Split
from setpoint.recipes.data.download import download_file
from setpoint.recipes.data.files import check_md5, missing_data
from setpoint.recipes.data.unpickling import load_arrays

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
FOLDER = "cifar-10-batches-py"
TRAIN_BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}
TEST_BATCHES = {"test_batch": "40351d587109b95175f43aff81a1287e"}
_PIXELS = 3 * 32 * 32

logger = logging.getLogger(__name__)


def load_cifar10(folder: Path, *, download: bool) -> Collection:
    """Read CIFAR-10: the unpacked batches, else the archive, else the JPEG archives, else a download.

    Args:
        folder: The data folder.
        download: Whether the archive may be fetched if nothing is there.

    Returns:
        The collection, named ``"cifar10"``, or ``"cifar10-jpeg"`` if only JPEG files were there.

    Raises:
        DataError: If the data are missing, cannot be fetched, or are not what was published.
    """
    unpacked, archive = folder / FOLDER, folder / ARCHIVE
    if all((unpacked / name).is_file() for name in TRAIN_BATCHES | TEST_BATCHES):
        return _collection({name: (unpacked / name).read_bytes() for name in TRAIN_BATCHES | TEST_BATCHES}, unpacked)
    if not archive.is_file():
        if has_jpeg(folder):
            logger.info("the original CIFAR-10 is not in %s: using its JPEG copy, named cifar10-jpeg", folder)
            return load_cifar10_jpeg(folder)
        if not download:
            wanted = [f"{FOLDER}/{{{','.join(TRAIN_BATCHES | TEST_BATCHES)}}}", ARCHIVE, JPEG_ARCHIVES]
            raise missing_data("cifar10", folder, wanted, download=True)
        download_file(URL, archive, md5=ARCHIVE_MD5)
    return _collection(_unpack(archive), archive)


def _unpack(archive: Path) -> dict[str, bytes]:
    """Return the batches in the archive, by name; nothing is written to disk."""
    content = archive.read_bytes()
    check_md5(content, ARCHIVE_MD5, archive)
    with open_tar(content, archive) as tar:
        return {name: read_member(tar, f"{FOLDER}/{name}", archive) for name in TRAIN_BATCHES | TEST_BATCHES}


def _collection(batches: Mapping[str, bytes], origin: Path) -> Collection:
    for name, md5 in (TRAIN_BATCHES | TEST_BATCHES).items():
        check_md5(batches[name], md5, origin / name)
    train, test = (
        [_decode(load_arrays(batches[name], str(origin / name)), origin / name) for name in names]
        for names in (TRAIN_BATCHES, TEST_BATCHES)
    )
    return Collection("cifar10", _join(train), _join(test), CLASSES, "flip_crop")


def _decode(batch: Any, path: Path) -> Split:
    """Make a split of one unpickled batch: ``data`` (N, 3072) uint8, channel by channel, and a list of N labels."""
    try:
        data, labels = batch[b"data"], batch[b"labels"]
    except (KeyError, TypeError, IndexError):
        raise DataError(f"{str(path)!r} is not a CIFAR-10 batch: it has no 'data' and 'labels'") from None
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape[1:] == (_PIXELS,)):
        found = f"{data.dtype} of shape {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{str(path)!r}: its data must be uint8 of shape (N, {_PIXELS}), not {found}")
    images = torch.from_numpy(data.reshape(-1, 3, 32, 32).copy())
    return Split(images, torch.tensor(labels, dtype=torch.int64))


def _join(splits: list[Split]) -> Split:
    return Split(torch.cat([split.inputs for split in splits]), torch.cat([split.targets for split in splits]))
