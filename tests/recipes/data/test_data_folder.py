"""A folder of the user's own images."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setpoint.recipes.data import DataError, load_dataset

COLORS = {"blue": (0, 0, 200), "red": (200, 0, 0)}


def fill(root: Path, count: int, suffix: str = "png", size: tuple[int, int] = (8, 6)) -> Path:
    for name, color in COLORS.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", size, color).save(root / name / f"{index:03}.{suffix}")
    return root


def test_train_and_test_folders(tmp_path: Path) -> None:
    fill(tmp_path / "pets/train", 10, "jpg")
    fill(tmp_path / "pets/test", 3)
    dataset = load_dataset(str(tmp_path / "pets"), image_size=16)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (18, 2, 6)
    assert (dataset.name, dataset.shape, dataset.classes) == ("pets", (3, 16, 16), ("blue", "red"))
    assert dataset.test.inputs[0, :, 0, 0].tolist() == [0, 0, 200]
    assert dataset.test.targets.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_fifth_of_each_class_is_set_aside(tmp_path: Path) -> None:
    dataset = load_dataset(fill(tmp_path / "pets", 20))
    assert dataset.shape == (3, 32, 32)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (29, 3, 8)
    assert dataset.test.targets.bincount().tolist() == [4, 4]


def test_the_test_images_depend_on_their_names_alone(tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    for name in COLORS:
        (folder / name).mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (4, 4), (index, 0, 0)).save(folder / name / f"{index}.png")
    shutil.copytree(folder, tmp_path / "copy")
    first, second = load_dataset(folder, seed=1), load_dataset(tmp_path / "copy", seed=2)
    assert first.test.inputs.equal(second.test.inputs)
    test_reds = set(first.test.inputs[:, 0, 0, 0].tolist())
    assert len(test_reds) == 2
    assert test_reds.isdisjoint(first.train.inputs[:, 0, 0, 0].tolist())


def test_all_modes_become_rgb(tmp_path: Path) -> None:
    folder = fill(tmp_path / "pets", 4)
    for index, mode in enumerate(("L", "1", "P", "RGBA")):
        Image.new(mode, (5, 5)).save(folder / "red" / f"{mode}{index}.PNG")
    (folder / "red" / "notes.txt").write_text("not an image")
    (folder / ".hidden").mkdir()
    dataset = load_dataset(folder, image_size=4)
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 12
    assert dataset.shape == (3, 4, 4)


def test_images_stand_as_their_exif_data_say(tmp_path: Path) -> None:
    folder = fill(tmp_path / "pets", 4)
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    for name in ("train", "test"):
        shutil.copytree(folder, tmp_path / "both" / name)
    Image.fromarray(pixels).save(tmp_path / "both/test/blue/000.png", exif=exif)
    image = load_dataset(tmp_path / "both", image_size=8).test.inputs[0]
    assert image[:, :4].max() == 0
    assert image[:, 4:].min() == 255


def test_what_is_no_set_of_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 class folders; at least 2"):
        load_dataset(tmp_path)
    fill(tmp_path / "one", 3)
    shutil.rmtree(tmp_path / "one/red")
    with pytest.raises(DataError, match="1 class folders; at least 2"):
        load_dataset(tmp_path / "one")
    folder = fill(tmp_path / "pets", 1)
    with pytest.raises(DataError, match="class 'blue' has 1 image; at least 2"):
        load_dataset(folder)
    (folder / "green").mkdir()
    with pytest.raises(DataError, match="no PNG or JPEG files in the class folders green"):
        load_dataset(folder)


def test_classes_that_differ_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "train", 3)
    (fill(tmp_path / "test", 3) / "red").rename(tmp_path / "test/rde")
    with pytest.raises(DataError, match="only one of them has rde, red"):
        load_dataset(tmp_path)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "pets", 4)
    (folder / "red/001.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"001\.png' is not a readable image"):
        load_dataset(folder)


def test_an_image_size_of_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="image_size=0 was asked for"):
        load_dataset(fill(tmp_path / "pets", 4), image_size=0)
