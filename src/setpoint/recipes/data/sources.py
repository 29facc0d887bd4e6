"""Every data set by its name, or a folder of images by its path."""

from collections.abc import Callable
from pathlib import Path

from setpoint.recipes.data.cifar import load_cifar10
from setpoint.recipes.data.cifar_jpeg import load_cifar10_jpeg
from setpoint.recipes.data.dataset import Collection, DataError, Dataset, hold_out
from setpoint.recipes.data.digits import load_digits
from setpoint.recipes.data.files import data_folder
from setpoint.recipes.data.idx import FASHION_MNIST, MNIST, load_idx_set
from setpoint.recipes.data.image_folder import load_image_folder

_VALIDATION_COUNT = 5000
_DEFAULT_IMAGE_SIZE = 32

# Each takes the data folder and whether a download is allowed.
_READERS: dict[str, Callable[[Path, bool], Collection]] = {
    "mnist": lambda folder, download: load_idx_set(MNIST, folder, download=download),
    "fashion-mnist": lambda folder, download: load_idx_set(FASHION_MNIST, folder, download=download),
    "cifar10": lambda folder, download: load_cifar10(folder, download=download),
    "cifar10-jpeg": lambda folder, _: load_cifar10_jpeg(folder),
}


def dataset_names() -> tuple[str, ...]:
    """Return the names that :func:`load_dataset` knows, besides the path of a folder of images."""
    return ("digits", *_READERS)


def load_dataset(
    name: str | Path,
    *,
    root: Path | str | None = None,
    seed: int = 0,
    download: bool = True,
    image_size: int | None = None,
) -> Dataset:
    """Load a data set and hold a validation split out of its training examples.

    Args:
        name: One of :func:`dataset_names`, or the path of a folder of images: ``folder/train/<class>/*.png`` (or
            ``.jpg``) with ``folder/test/<class>/*``, or ``folder/<class>/*``, of which a fifth becomes the test split.
        root: The data folder; by default the one in ``SETPOINT_DATA``, else one in the user's cache. Not used for
            ``digits`` and folders of images.
        seed: Chooses the validation examples. The test examples are the same for every seed.
        download: Whether missing files may be fetched into the data folder.
        image_size: Height and width to which the images of a folder are resized, 32 by default. The named data sets
            have a size of their own.

    Returns:
        The data set. Its name is ``"cifar10-jpeg"`` where ``cifar10`` was found as JPEG files only: figures on the two
        differ.

    Raises:
        DataError: If the name is not known, the data are missing or damaged, or an ``image_size`` was asked for that
            cannot be given.
    """
    name = str(name)
    if image_size is not None and name in dataset_names():
        raise DataError(f"image_size={image_size} was asked for with {name!r}, whose size is fixed; leave it out")
    if name == "digits":
        return load_digits(seed=seed)
    if reader := _READERS.get(name):
        collection = reader(data_folder(root), download)
        # Of the full sets 5,000; never more than a tenth.
        count = min(_VALIDATION_COUNT, len(collection.train) // 10)
        return hold_out(collection, count, seed=seed)
    return _load_folder(name, seed, _DEFAULT_IMAGE_SIZE if image_size is None else image_size)


def _load_folder(name: str, seed: int, image_size: int) -> Dataset:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        possible = ", ".join(dataset_names())
        raise DataError(f"unknown data set {name!r}; possible are {possible}, or the path of a folder of images")
    collection = load_image_folder(folder, image_size=image_size)
    return hold_out(collection, max(1, len(collection.train) // 10), seed=seed)
