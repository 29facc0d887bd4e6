"""MNIST and Fashion-MNIST: four files in the IDX format."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from setpoint.recipes.data.archives import read_gzip
from setpoint.recipes.data.dataset import Collection, DataError, Split
from setpoint.recipes.data.download import download_file
from setpoint.recipes.data.files import check_md5, missing_data

_UNSIGNED_BYTE = 8


@dataclass(frozen=True)
class IdxFile:
    """One published file.

    Attributes:
        name: File name without ``.gz``.
        archive_md5: Checksum of the published ``.gz``, for downloads.
        content_md5: Checksum of the unpacked bytes, for every reading: a re-compressed copy is as good as the original.
            None where it is not known; then the checksum within the gzip file and the header have to do.
    """

    name: str
    archive_md5: str
    content_md5: str | None = None


@dataclass(frozen=True)
class IdxSet:
    """A data set of four IDX files: training images and labels, test images and labels, in this order."""

    name: str
    folder: str
    url: str
    files: tuple[IdxFile, IdxFile, IdxFile, IdxFile]
    classes: tuple[str, ...]


MNIST = IdxSet(
    name="mnist",
    folder="MNIST/raw",
    url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    files=(
        IdxFile("train-images-idx3-ubyte", "f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
        IdxFile("train-labels-idx1-ubyte", "d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
        IdxFile("t10k-images-idx3-ubyte", "9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
        IdxFile("t10k-labels-idx1-ubyte", "ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
    ),
    classes=tuple("0123456789"),
)

FASHION_MNIST = IdxSet(
    name="fashion-mnist",
    folder="FashionMNIST/raw",
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    files=(
        IdxFile("train-images-idx3-ubyte", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        IdxFile("train-labels-idx1-ubyte", "25c81989df183df01b3e8a0aad5dffbe"),
        IdxFile("t10k-images-idx3-ubyte", "bef4ecab320f06d8554ea6380940ec79"),
        IdxFile("t10k-labels-idx1-ubyte", "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
    classes=(
        "t-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
)


def load_idx_set(idx_set: IdxSet, folder: Path, *, download: bool) -> Collection:
    """Read the four files of a data set, downloading those that are missing if that is allowed.

    Args:
        idx_set: Which one.
        folder: The data folder.
        download: Whether missing files may be fetched.

    Raises:
        DataError: If a file is missing, cannot be fetched, or is not what was published.
    """
    raw = folder / idx_set.folder
    missing = [file for file in idx_set.files if _find(raw, file) is None]
    if missing and not download:
        wanted = [f"{idx_set.folder}/{file.name}[.gz]" for file in missing]
        raise missing_data(idx_set.name, folder, wanted, download=True)
    for file in missing:
        download_file(f"{idx_set.url}{file.name}.gz", raw / f"{file.name}.gz", md5=file.archive_md5)
    images, labels, test_images, test_labels = (_read(raw, file) for file in idx_set.files)
    return Collection(
        name=idx_set.name,
        train=_split(images, labels),
        test=_split(test_images, test_labels),
        classes=idx_set.classes,
        augmentation="none",
    )


def parse_idx(content: bytes, path: Path) -> Tensor:
    """Decode an IDX file of unsigned bytes.

    The header is two zero bytes, the code of the element type, the number of axes, and each axis' size as a big-endian
    32-bit integer; the elements follow in row-major order.

    Args:
        content: The unpacked file.
        path: Its path, for errors.

    Returns:
        A uint8 tensor of the shape in the header.

    Raises:
        DataError: If the header is not one of unsigned bytes, or the size is not what it says.
    """
    if len(content) < 4 or content[:3] != bytes((0, 0, _UNSIGNED_BYTE)):
        found = content[:4].hex(" ")
        raise DataError(f"{str(path)!r} is not an IDX file of unsigned bytes: it starts with {found!r}, not '00 00 08'")
    axes = content[3]
    start = 4 + 4 * axes
    shape = np.frombuffer(content[4:start], dtype=">u4").tolist()
    elements = np.frombuffer(content[start:], dtype=np.uint8)
    if len(shape) != axes or elements.size != np.prod(shape, dtype=np.int64):
        raise DataError(f"{str(path)!r} is cut short or padded: its header says {shape}, {elements.size} bytes follow")
    return torch.from_numpy(elements.reshape(shape).copy())


def _find(raw: Path, file: IdxFile) -> Path | None:
    candidates = (raw / f"{file.name}.gz", raw / file.name)
    return next((path for path in candidates if path.is_file()), None)


def _read(raw: Path, file: IdxFile) -> Tensor:
    path = _find(raw, file) or raw / file.name
    content = read_gzip(path) if path.suffix == ".gz" else path.read_bytes()
    if file.content_md5 is not None:
        check_md5(content, file.content_md5, path)
    return parse_idx(content, path)


def _split(images: Tensor, labels: Tensor) -> Split:
    return Split(images.unsqueeze(1), labels.long())
