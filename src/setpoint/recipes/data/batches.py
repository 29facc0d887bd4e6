"""Batches whose order and augmentation follow from a seed and an epoch, so that a resumed run sees the same ones."""

from collections.abc import Iterator

import torch
from torch import Tensor

from setpoint.recipes.data.dataset import DataError, Dataset, Split
from setpoint.recipes.data.preparing import preparation
from setpoint.recipes.data.seeding import derive_generator


class Batches:
    """Batches of a split as a model takes them, epoch by epoch.

    The split is moved to the device once. Each batch is a pure function of ``(seed, epoch, batch index)``: epochs can
    be asked for in any order, begun in the middle, and repeated.

    Args:
        split: The examples.
        dataset: Where they come from: its task, statistics and augmentation are used.
        batch_size: Examples a batch.
        seed: Decides order and augmentation.
        shuffle: Whether each epoch has an order of its own; otherwise it is that of the split.
        augment: Whether to vary the inputs, as the data set allows.
        device: Where the batches are made.
        drop_last: Whether to leave out a last batch that is not full; by default just when shuffling.

    Raises:
        DataError: If ``batch_size`` is not positive, the split is empty, or no batch would be full.
    """

    def __init__(
        self,
        split: Split,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        augment: bool = False,
        device: torch.device | str = "cpu",
        drop_last: bool | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.augment = augment and dataset.augmentation != "none"
        self.drop_last = shuffle if drop_last is None else drop_last
        self.device = torch.device(device)
        self._examples = len(split)
        self._check()
        self._inputs = split.inputs.to(self.device)
        self._targets = split.targets.to(self.device)
        self._prepare = preparation(dataset, split, self.device)

    def _check(self) -> None:
        if self.batch_size < 1 or self._examples == 0:
            raise DataError(
                f"batches of {self.batch_size} were asked for of {self._examples} examples; both must be at least 1"
            )
        if len(self) == 0:
            raise DataError(
                f"batch_size={self.batch_size} was asked for with drop_last, but there are {self._examples} examples; "
                f"at most {self._examples} is possible"
            )

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        full, rest = divmod(self._examples, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over epoch 0, which suits evaluation; for training, ask for each :meth:`epoch`."""
        return self.epoch(0)

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the batches of an epoch.

        Args:
            number: Which epoch, from 0.
            start: The batch to begin with; the batches from there on are the same as without it.

        Returns:
            An iterator of inputs and targets on the device: images (float32, shape (B, C, H, W)) and classes (int64,
            shape (B,)), or tokens and those that follow them (int64, shape (B, T)).

        Raises:
            DataError: If ``number`` is negative, or ``start`` is outside ``0 .. len(self)``.
        """
        if number < 0:
            raise DataError(f"epoch {number} was asked for; epochs count from 0")
        if not 0 <= start <= len(self):
            raise DataError(f"batch {start} was asked for; an epoch has {len(self)}, so 0 to {len(self)} is possible")
        return self._iterate(number, start)

    def _iterate(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._order(epoch).to(self.device)
        for index in range(start, len(self)):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            inputs, targets = (tensor.index_select(0, chosen) for tensor in (self._inputs, self._targets))
            yield self._prepare(inputs, targets, (self.seed, epoch, index) if self.augment else None)

    def _order(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(self._examples)
        return torch.randperm(self._examples, generator=derive_generator("order", self.seed, epoch))
