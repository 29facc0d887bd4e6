"""Data sets by name, the data folder, the splits and their statistics."""

from pathlib import Path

import pytest
import torch

from setpoint.recipes.data import DataError, Split, dataset_names, load_dataset
from setpoint.recipes.data.dataset import Collection, assemble, channel_statistics, hold_out
from setpoint.recipes.data.files import cache_folder, data_folder


def make_split(count: int, channels: int = 1) -> Split:
    inputs = torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, channels, 4, 4).contiguous()
    return Split(inputs, torch.arange(count) % 2)


def make_collection(train: Split, test: Split) -> Collection:
    return Collection("toy", train, test, ("even", "odd"), "none")


def test_digits_are_split_by_class() -> None:
    dataset = load_dataset("digits")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (1078, 359, 360)
    assert (dataset.shape, dataset.classes) == ((1, 8, 8), tuple("0123456789"))
    assert dataset.train.inputs.dtype == torch.float32
    assert (dataset.train.inputs.min(), dataset.train.inputs.max()) == (0, 1)
    for split in (dataset.train, dataset.validation, dataset.test):
        shares = split.targets.bincount() / len(split)
        assert shares.sub(0.1).abs().max() < 0.01


def test_the_seed_chooses_validation_but_never_test() -> None:
    first, again, second = (
        load_dataset("digits", seed=0),
        load_dataset("digits", seed=0),
        load_dataset("digits", seed=1),
    )
    assert first.validation.inputs.equal(again.validation.inputs)
    assert not first.validation.inputs.equal(second.validation.inputs)
    assert first.test.inputs.equal(second.test.inputs)


def test_digits_need_no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETPOINT_DATA", "/nowhere")
    assert load_dataset("digits").name == "digits"


def test_an_unknown_name_lists_the_possible_ones() -> None:
    with pytest.raises(DataError, match=f"unknown data set 'mnst'; possible are {', '.join(dataset_names())}"):
        load_dataset("mnst")
    assert {"digits", "mnist", "fashion-mnist", "cifar10"} <= set(dataset_names())


def test_an_image_size_is_refused_for_named_sets() -> None:
    with pytest.raises(DataError, match="image_size=16 was asked for with 'mnist', whose size is fixed"):
        load_dataset("mnist", image_size=16)


def test_a_data_folder_that_does_not_exist_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETPOINT_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"SETPOINT_DATA names '.*gone' as the data folder, which is missing"):
        load_dataset("mnist")
    with pytest.raises(DataError, match=r"root names '.*elsewhere' as the data folder, which is missing"):
        load_dataset("mnist", root=tmp_path / "elsewhere")
    (tmp_path / "gone").touch()
    with pytest.raises(DataError, match="which is a file"):
        load_dataset("mnist")


def test_where_the_data_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SETPOINT_DATA", raising=False)
    assert data_folder() == tmp_path / "xdg/setpoint/data"
    for name in ("from-environment", "from-argument"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("SETPOINT_DATA", str(tmp_path / "from-environment"))
    assert data_folder() == tmp_path / "from-environment"
    assert data_folder(tmp_path / "from-argument") == tmp_path / "from-argument"


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_a_cache_folder_that_is_not_absolute_is_ignored(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_folder() == Path.home() / ".cache/setpoint"


def test_holding_out_divides_the_training_examples() -> None:
    collection = make_collection(make_split(50), make_split(4))
    dataset = hold_out(collection, 10, seed=3)
    train, validation = (split.inputs[:, 0, 0, 0].tolist() for split in (dataset.train, dataset.validation))
    assert (len(train), len(validation)) == (40, 10)
    assert sorted(train + validation) == list(range(50))
    assert train == sorted(train)
    assert hold_out(collection, 10, seed=3).validation.inputs.equal(dataset.validation.inputs)
    assert not hold_out(collection, 10, seed=4).validation.inputs.equal(dataset.validation.inputs)


@pytest.mark.parametrize("count", [0, 5, 6])
def test_holding_out_leaves_something_on_both_sides(count: int) -> None:
    with pytest.raises(DataError, match=f"{count} of 5 training images"):
        hold_out(make_collection(make_split(5), make_split(2)), count, seed=0)


def test_statistics_are_those_of_the_scaled_inputs() -> None:
    inputs = torch.randint(256, (5000, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = channel_statistics(inputs)
    scaled = inputs.double() / 255
    assert mean == pytest.approx(scaled.mean(dim=(0, 2, 3)).tolist())
    assert std == pytest.approx(scaled.std(dim=(0, 2, 3), correction=0).tolist())
    assert channel_statistics(scaled.float())[1] == pytest.approx(std)


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_constant_channel_has_a_deviation_of_one(value: int) -> None:
    mean, std = channel_statistics(torch.full((3, 1, 2, 2), value, dtype=torch.uint8))
    assert mean == pytest.approx((value / 255,))
    assert std == (1.0,)


def test_malformed_splits_are_refused() -> None:
    images, labels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(DataError, match=r"uint8 or float32 of shape \(N, C, H, W\), not torch.float64"):
        Split(images.double(), labels)
    with pytest.raises(DataError, match=r"not torch.uint8 of shape \(2, 4, 4\)"):
        Split(images[:, 0], labels)
    with pytest.raises(DataError, match="targets must be int64"):
        Split(images, labels.int())
    with pytest.raises(DataError, match="2 images came with 1 labels"):
        Split(images, labels[:1])


def test_collections_that_do_not_fit_are_refused() -> None:
    train = make_split(4)
    with pytest.raises(DataError, match="toy, test split: it is empty"):
        assemble(make_collection(train, make_split(0)), train, train)
    with pytest.raises(DataError, match=r"images of shape \(3, 4, 4\), where the training images are \(1, 4, 4\)"):
        assemble(make_collection(train, make_split(4, channels=3)), train, train)
    wrong = Split(train.inputs, train.targets + 1)
    with pytest.raises(DataError, match="labels run from 1 to 2; with 2 classes, 0 to 1"):
        assemble(make_collection(train, wrong), train, train)
