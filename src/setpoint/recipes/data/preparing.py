"""What a model is given for stored examples: normalised images, or the tokens of a text."""

from collections.abc import Callable

import torch
from torch import Tensor

from setpoint.recipes.data.augmentation import flip_crop
from setpoint.recipes.data.dataset import Dataset, Split, input_scale
from setpoint.recipes.data.seeding import derive_generator

# What the variation of a batch is drawn from: seed, epoch and index of the batch. None leaves it as it is.
Draw = tuple[int, int, int]
Prepare = Callable[[Tensor, Tensor, Draw | None], tuple[Tensor, Tensor]]


def preparation(dataset: Dataset, split: Split, device: torch.device) -> Prepare:
    """Return what makes a batch of a split's inputs and targets, both on the device and not used elsewhere."""
    if dataset.task == "language modelling":
        return _Windows(dataset.shape[0])
    return _Images(dataset, split, device)


class _Images:
    """Images as floats with mean 0 and deviation 1 in each channel, varied as the data set allows."""

    def __init__(self, dataset: Dataset, split: Split, device: torch.device) -> None:
        # (x * scale - mean) / std, as one multiplication and one addition.
        mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (dataset.mean, dataset.std))
        self._factor = (input_scale(split.inputs) / std).to(device)
        self._shift = (-mean / std).to(device)

    def __call__(self, inputs: Tensor, targets: Tensor, draw: Draw | None) -> tuple[Tensor, Tensor]:
        if draw is not None:
            inputs = flip_crop(inputs, derive_generator("augment", *draw))
        # The caller's batch or flip_crop's copy is our own, so that one of floats can be changed in place.
        return inputs.float().mul_(self._factor).add_(self._shift), targets


class _Windows:
    """As many bytes of each window as the model takes, as tokens; all windows of an epoch begin equally late."""

    def __init__(self, context: int) -> None:
        self._context = context

    def __call__(self, inputs: Tensor, targets: Tensor, draw: Draw | None) -> tuple[Tensor, Tensor]:
        begin = 0
        if draw is not None:
            seed, epoch, _ = draw
            spare = inputs.shape[1] - self._context
            begin = int(torch.randint(spare + 1, (), generator=derive_generator("shift", seed, epoch)))
        taken = slice(begin, begin + self._context)
        return inputs[:, taken].long(), targets[:, taken].long()
