"""The handwritten digits that scikit-learn carries: 1,797 images of 8x8, nothing to download."""

import numpy as np
import torch

from setpoint.recipes.data.dataset import Collection, Dataset, Split, assemble
from setpoint.recipes.data.seeding import derive_seed

_TEST_COUNT = 360
_VALIDATION_COUNT = 359
# The test images are the same in every run, whatever its seed: figures of two runs must be comparable.
_TEST_SEED = 0
_LARGEST_VALUE = 16


def load_digits(*, seed: int) -> Dataset:
    """Load the digits: 1,078 to train on, 359 to validate, 360 to test, each with the same share of every class.

    Args:
        seed: Chooses the validation images among those that are not for testing.

    Returns:
        The data set; its inputs are float32 of shape (N, 1, 8, 8) in 0..1 (scikit-learn's 0..16, divided by 16).
    """
    # Imported here: it takes longer than all the rest, and only this data set needs it.
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    values, labels = datasets.load_digits(return_X_y=True)
    images = torch.from_numpy((values / _LARGEST_VALUE).astype(np.float32)).reshape(-1, 1, 8, 8)
    everything = Split(images, torch.from_numpy(labels.astype(np.int64)))
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=_TEST_COUNT, stratify=labels, random_state=_TEST_SEED
    )
    train, validation = train_test_split(
        rest, test_size=_VALIDATION_COUNT, stratify=labels[rest], random_state=derive_seed("validation", seed)
    )
    parts = [everything.select(torch.from_numpy(np.sort(indices))) for indices in (rest, test, train, validation)]
    collection = Collection("digits", parts[0], parts[1], tuple("0123456789"), "none")
    return assemble(collection, parts[2], parts[3])
