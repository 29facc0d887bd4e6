"""What a data set is: three splits, the names of the classes, and what is to be done with its inputs."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from setpoint.recipes.data.seeding import derive_generator

Augmentation = Literal["none", "flip_crop", "shift"]
Task = Literal["classification", "language modelling"]

# Images a step of the statistics: bounds the float64 copy to some tens of megabytes.
_CHUNK = 2048


class DataError(ValueError):
    """A data set is missing, altered, or not what it should be."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their classes, or windows of a text and the bytes that follow.

    Attributes:
        inputs: Images of shape (N, C, H, W), uint8 in 0..255 or float32 in 0..1; or bytes of shape (N, T), uint8.
        targets: Class indices of shape (N,), int64; or for each byte the next one, uint8 of the inputs' shape.

    Raises:
        DataError: If a shape or dtype is another one, or the two lengths differ.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if self.inputs.dim() == 2:
            self._check_text()
        else:
            self._check_images()

    def _check_text(self) -> None:
        for name, tensor in (("inputs", self.inputs), ("targets", self.targets)):
            if tensor.dtype != torch.uint8 or tensor.shape != self.inputs.shape:
                found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
                raise DataError(f"{name} of a text must be uint8 of shape {tuple(self.inputs.shape)}, not {found}")

    def _check_images(self) -> None:
        if self.inputs.dim() != 4 or self.inputs.dtype not in (torch.uint8, torch.float32):
            found = f"{self.inputs.dtype} of shape {tuple(self.inputs.shape)}"
            raise DataError(f"inputs must be uint8 or float32 of shape (N, C, H, W), not {found}")
        if self.targets.dim() != 1 or self.targets.dtype != torch.int64:
            found = f"{self.targets.dtype} of shape {tuple(self.targets.shape)}"
            raise DataError(f"targets must be int64 of shape (N,), not {found}")
        if len(self.inputs) != len(self.targets):
            raise DataError(
                f"{len(self.inputs)} images came with {len(self.targets)} labels: one label an image is needed"
            )

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, indices: Tensor) -> "Split":
        """Return the examples at ``indices`` (int64, shape (M,)) as a split of their own."""
        return Split(self.inputs[indices], self.targets[indices])


@dataclass(frozen=True, eq=False)
class Collection:
    """What a source holds before a validation split is taken from its training examples."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    augmentation: Augmentation


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set that is ready to train on.

    Attributes:
        name: What it is, e.g. ``"mnist"``; ``"cifar10-jpeg"`` where CIFAR-10 came from JPEG files.
        train: Examples to train on.
        validation: Examples held out of the training set, for choosing.
        test: Examples for the final figure only.
        classes: Names of the classes, by class index.
        shape: What a model takes, without the batch: (C, H, W) of an image, (T,) of a text.
        mean: Mean of each channel of the training images, scaled to 0..1; empty for a text.
        std: Standard deviation of each channel of the training images, scaled to 0..1; 1 where a channel is constant.
        augmentation: How training inputs may be varied without changing what they are.
        task: What a model learns from it: the class of an image, or the bytes that follow in a text.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    task: Task


def assemble(collection: Collection, train: Split, validation: Split) -> Dataset:
    """Make the data set of a collection whose training examples were divided into ``train`` and ``validation``.

    Raises:
        DataError: If a split is empty, an image has another shape, or a label is not the index of a class.
    """
    splits = {"train": train, "validation": validation, "test": collection.test}
    channels, height, width = train.inputs.shape[1:]
    for title, split in splits.items():
        _check_split(f"{collection.name}, {title} split", split, (channels, height, width), len(collection.classes))
    mean, std = channel_statistics(train.inputs)
    return Dataset(
        name=collection.name,
        train=train,
        validation=validation,
        test=collection.test,
        classes=collection.classes,
        shape=(channels, height, width),
        mean=mean,
        std=std,
        augmentation=collection.augmentation,
        task="classification",
    )


def hold_out(collection: Collection, count: int, *, seed: int) -> Dataset:
    """Make a data set with ``count`` of the training examples, chosen by ``seed``, held out for validation.

    Raises:
        DataError: If nothing would be left to train on, or the collection is malformed (see :func:`assemble`).
    """
    available = len(collection.train)
    if not 0 < count < available:
        raise DataError(
            f"{collection.name}: {count} of {available} training images were to be held out for validation; "
            f"at least 1 image must be left on each side"
        )
    order = torch.randperm(available, generator=derive_generator("validation", seed))
    # Sorted, so that the training examples keep the order of their source.
    train, validation = (collection.train.select(part.sort().values) for part in (order[count:], order[:count]))
    return assemble(collection, train, validation)


def channel_statistics(inputs: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel of images scaled to 0..1.

    Args:
        inputs: Images of shape (N, C, H, W), uint8 in 0..255 or float32 in 0..1.

    Returns:
        ``(mean, std)``, C numbers each; the standard deviation of a constant channel is given as 1, so that it can
        be divided by.
    """
    total = torch.zeros(inputs.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for start in range(0, len(inputs), _CHUNK):
        values = inputs[start : start + _CHUNK].double()
        total += values.sum(dim=(0, 2, 3))
        squares += values.square_().sum(dim=(0, 2, 3))
    count = inputs.numel() // inputs.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp_(min=0).sqrt_()
    scale = input_scale(inputs)
    std = torch.where(std > 1e-6 * mean.abs(), std * scale, torch.ones_like(std))
    return tuple((mean * scale).tolist()), tuple(std.tolist())


def input_scale(inputs: Tensor) -> float:
    """Return the factor that brings ``inputs`` to 0..1: 1/255 for bytes, 1 for floats."""
    return 1 / 255 if inputs.dtype == torch.uint8 else 1.0


def _check_split(title: str, split: Split, shape: tuple[int, int, int], classes: int) -> None:
    if len(split) == 0:
        raise DataError(f"{title}: it is empty; at least 1 image is needed")
    if tuple(split.inputs.shape[1:]) != shape:
        raise DataError(
            f"{title}: images of shape {tuple(split.inputs.shape[1:])}, where the training images are {shape}"
        )
    low, high = int(split.targets.min()), int(split.targets.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"{title}: labels run from {low} to {high}; with {classes} classes, 0 to {classes - 1} is possible"
        )
