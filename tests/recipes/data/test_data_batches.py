"""Batches: what is in them, and that they follow from seed, epoch and index alone."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from setpoint.recipes.data import Batches, DataError, Dataset, Split
from setpoint.recipes.data.augmentation import flip_crop
from setpoint.recipes.data.dataset import Augmentation, Collection, assemble

Batch = tuple[Tensor, Tensor]


def make_dataset(count: int = 50, augmentation: Augmentation = "flip_crop") -> Dataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    # Targets name the examples, so that a test can see which ones a batch holds.
    split = Split(inputs, torch.arange(count))
    classes = tuple(str(index) for index in range(count))
    return assemble(Collection("toy", split, split, classes, augmentation), split, split)


def training_batches(dataset: Dataset, seed: int = 0) -> Batches:
    return Batches(dataset.train, dataset, 8, seed=seed, shuffle=True, augment=True)


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        a.equal(b) for pair in zip(first, second, strict=True) for a, b in zip(*pair, strict=True)
    )


def test_evaluation_sees_each_example_once_in_order() -> None:
    dataset = make_dataset()
    batches = Batches(dataset.test, dataset, 8)
    assert len(batches) == 7
    targets = [target for _, targets in batches for target in targets.tolist()]
    assert targets == list(range(50))


def test_training_drops_the_last_partial_batch() -> None:
    dataset = make_dataset()
    batches = Batches(dataset.train, dataset, 8, shuffle=True)
    sizes = [len(targets) for _, targets in batches.epoch(0)]
    assert sizes == [8] * 6
    assert len(batches) == 6
    targets = [target for _, targets in batches.epoch(0) for target in targets.tolist()]
    assert len(set(targets)) == 48


@pytest.mark.parametrize(("batch_size", "drop_last", "expected"), [(50, True, 1), (25, False, 2), (51, False, 1)])
def test_the_number_of_batches(batch_size: int, drop_last: bool, expected: int) -> None:
    dataset = make_dataset()
    batches = Batches(dataset.train, dataset, batch_size, shuffle=True, drop_last=drop_last)
    assert len(batches) == len(list(batches)) == expected


def test_inputs_are_normalised() -> None:
    dataset = make_dataset()
    inputs, targets = next(iter(Batches(dataset.train, dataset, 50)))
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (dataset.mean, dataset.std))
    torch.testing.assert_close(inputs, (dataset.train.inputs / 255 - mean) / std)
    torch.testing.assert_close(inputs.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_float_inputs_are_normalised_and_left_alone() -> None:
    bytes_set = make_dataset()
    split = Split(bytes_set.train.inputs / 255, bytes_set.train.targets)
    before = split.inputs.clone()
    expected, _ = next(iter(Batches(bytes_set.train, bytes_set, 50)))
    for _ in range(2):
        inputs, _ = next(iter(Batches(split, bytes_set, 50)))
        torch.testing.assert_close(inputs, expected)
    assert split.inputs.equal(before)


def test_an_epoch_is_the_same_whenever_it_is_asked_for() -> None:
    dataset = make_dataset()
    batches = training_batches(dataset)
    first = list(batches.epoch(2))
    torch.manual_seed(99)
    list(batches.epoch(0))
    assert same(first, list(batches.epoch(2)))
    assert same(first, list(training_batches(dataset).epoch(2)))


def test_seeds_and_epochs_differ() -> None:
    dataset = make_dataset()
    runs = [list(training_batches(dataset, seed).epoch(epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert not any(same(first, second) for first, second in itertools.combinations(runs, 2))


@pytest.mark.parametrize("start", [0, 1, 3, 5, 6])
def test_a_resumed_epoch_has_the_remaining_batches(start: int) -> None:
    dataset = make_dataset()
    whole = list(training_batches(dataset).epoch(1))
    assert same(list(training_batches(dataset).epoch(1, start=start)), whole[start:])


def test_batches_leave_the_global_generator_alone() -> None:
    dataset = make_dataset()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(training_batches(dataset).epoch(0))
    assert torch.rand(3).equal(expected)


def test_a_set_without_augmentation_is_not_augmented() -> None:
    dataset = make_dataset(augmentation="none")
    plain = Batches(dataset.train, dataset, 8, shuffle=True)
    assert same(list(plain), list(training_batches(dataset)))
    augmented = make_dataset()
    assert not same(list(plain), list(training_batches(augmented)))


def test_what_cannot_be_batched_is_refused() -> None:
    dataset = make_dataset(4)
    with pytest.raises(DataError, match="batches of 0 were asked for of 4 examples"):
        Batches(dataset.train, dataset, 0)
    with pytest.raises(DataError, match="batch_size=8 was asked for with drop_last, but there are 4 examples"):
        Batches(dataset.train, dataset, 8, shuffle=True)
    batches = Batches(dataset.train, dataset, 2)
    with pytest.raises(DataError, match="epoch -1 was asked for"):
        batches.epoch(-1)
    for start in (-1, 3):
        with pytest.raises(DataError, match=f"batch {start} was asked for; an epoch has 2"):
            batches.epoch(0, start=start)


def test_crops_are_windows_of_the_padded_image_or_its_mirror_image() -> None:
    images = torch.randint(1, 256, (64, 3, 8, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    results = flip_crop(images, torch.Generator().manual_seed(1))
    assert results.shape == images.shape
    assert results.dtype == images.dtype
    seen = set()
    for image, result in zip(images, results, strict=True):
        found = [place for place, window in windows(image) if window.equal(result)]
        assert found
        seen.update(found)
    assert {mirrored for mirrored, _, _ in seen} == {False, True}
    assert {top for _, top, _ in seen} == {left for _, _, left in seen} == set(range(9))


def windows(image: Tensor) -> list[tuple[tuple[bool, int, int], Tensor]]:
    _, height, width = image.shape
    return [
        ((mirrored, top, left), padded[:, top : top + height, left : left + width])
        for mirrored, padded in (
            (False, functional.pad(image, (4,) * 4)),
            (True, functional.pad(image.flip(2), (4,) * 4)),
        )
        for top in range(9)
        for left in range(9)
    ]
