"""Every data set by its name, or a folder of images or a text by its path."""

from collections.abc import Callable
from pathlib import Path

from setpoint.recipes.data.cifar import load_cifar10
from setpoint.recipes.data.cifar_jpeg import load_cifar10_jpeg
from setpoint.recipes.data.dataset import Collection, DataError, Dataset, hold_out
from setpoint.recipes.data.digits import load_digits
from setpoint.recipes.data.files import data_folder
from setpoint.recipes.data.idx import FASHION_MNIST, MNIST, load_idx_set
from setpoint.recipes.data.image_folder import load_image_folder
from setpoint.recipes.data.text import TINYSHAKESPEARE, load_text, load_text_set

_VALIDATION_COUNT = 5000
_DEFAULT_IMAGE_SIZE = 32

# Each takes the data folder and whether a download is allowed.
_READERS: dict[str, Callable[[Path, bool], Collection]] = {
    "mnist": lambda folder, download: load_idx_set(MNIST, folder, download=download),
    "fashion-mnist": lambda folder, download: load_idx_set(FASHION_MNIST, folder, download=download),
    "cifar10": lambda folder, download: load_cifar10(folder, download=download),
    "cifar10-jpeg": lambda folder, _: load_cifar10_jpeg(folder),
}
_TEXTS = {text_set.name: text_set for text_set in (TINYSHAKESPEARE,)}


def dataset_names() -> tuple[str, ...]:
    """Return the names that :func:`load_dataset` knows, besides the paths of folders of images and of texts."""
    return ("digits", *_READERS, *_TEXTS)


def is_text(name: str) -> bool:
    """Say whether a data set is a text: one that is known by its name, or a file."""
    return name in _TEXTS or (name not in dataset_names() and Path(name).expanduser().is_file())


def load_dataset(
    name: str | Path,
    *,
    root: Path | str | None = None,
    seed: int = 0,
    download: bool = True,
    image_size: int | None = None,
    context: int = 128,
) -> Dataset:
    """Load a data set and hold a validation split out of its training examples.

    Args:
        name: One of :func:`dataset_names`, or the path of a folder of images: ``folder/train/<class>/*.png`` (or
            ``.jpg``) with ``folder/test/<class>/*``, or ``folder/<class>/*``, of which a fifth becomes the test split;
            or the path of a text, of which the last tenth becomes the test split.
        root: The data folder; by default the one in ``SETPOINT_DATA``, else one in the user's cache. Not used for
            ``digits`` and paths.
        seed: Chooses the validation examples; those of a text are the last before its test split. The test examples are
            the same for every seed.
        download: Whether missing files may be fetched into the data folder.
        image_size: Height and width to which the images of a folder are resized, 32 by default. The named data sets
            have a size of their own.
        context: Bytes in a window of a text; not used for images.

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
    if text_set := _TEXTS.get(name):
        return load_text_set(text_set, data_folder(root), context=context, download=download)
    if is_text(name):
        return load_text(Path(name).expanduser(), context=context)
    return _load_folder(name, seed, _DEFAULT_IMAGE_SIZE if image_size is None else image_size)


def _load_folder(name: str, seed: int, image_size: int) -> Dataset:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        possible = ", ".join(dataset_names())
        raise DataError(f"unknown data set {name!r}; possible are {possible}, or the path of images or of a text")
    collection = load_image_folder(folder, image_size=image_size)
    return hold_out(collection, max(1, len(collection.train) // 10), seed=seed)
