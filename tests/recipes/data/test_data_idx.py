"""MNIST and Fashion-MNIST: the IDX format, its checksums, and what is refused."""

import dataclasses
import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from setpoint.recipes.data import DataError, idx, load_dataset, sources

COUNTS = {"train": 40, "t10k": 10}


def pack_idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def make_contents(seed: int = 0) -> dict[str, bytes]:
    random = np.random.default_rng(seed)
    contents = {}
    for part, count in COUNTS.items():
        contents[f"{part}-images-idx3-ubyte"] = pack_idx(random.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        contents[f"{part}-labels-idx1-ubyte"] = pack_idx(np.arange(count, dtype=np.uint8) % 10)
    return contents


def write(root: Path, contents: dict[str, bytes], folder: str = "MNIST/raw", *, packed: bool = True) -> Path:
    raw = root / folder
    raw.mkdir(parents=True)
    for name, content in contents.items():
        if packed:
            (raw / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (raw / name).write_bytes(content)
    return raw


@pytest.fixture
def contents(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Unpacked files of a tiny MNIST, whose checksums stand in the table in place of the real ones."""
    contents = make_contents()
    files = tuple(
        dataclasses.replace(file, content_md5=hashlib.md5(contents[file.name]).hexdigest()) for file in idx.MNIST.files
    )
    monkeypatch.setattr(sources, "MNIST", dataclasses.replace(idx.MNIST, files=files))
    return contents


@pytest.mark.parametrize("packed", [True, False])
def test_files_are_read_packed_and_unpacked(tmp_path: Path, contents: dict[str, bytes], packed: bool) -> None:
    write(tmp_path, contents, packed=packed)
    dataset = load_dataset("mnist", root=tmp_path, download=False)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (36, 4, 10)
    assert (dataset.name, dataset.shape, dataset.augmentation) == ("mnist", (1, 28, 28), "none")
    assert dataset.classes == tuple("0123456789")
    assert dataset.test.inputs.dtype == torch.uint8
    expected = np.frombuffer(contents["t10k-images-idx3-ubyte"][16:], dtype=np.uint8).reshape(10, 1, 28, 28)
    assert np.array_equal(dataset.test.inputs.numpy(), expected)
    assert dataset.test.targets.tolist() == list(range(10))


def test_a_recompressed_copy_is_accepted(tmp_path: Path, contents: dict[str, bytes]) -> None:
    raw = write(tmp_path, contents)
    for name, content in contents.items():
        (raw / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1, mtime=7))
    assert len(load_dataset("mnist", root=tmp_path, download=False).train) == 36


def test_an_altered_file_is_refused_with_both_checksums(tmp_path: Path, contents: dict[str, bytes]) -> None:
    raw = write(tmp_path, contents)
    name = "train-labels-idx1-ubyte"
    altered = contents[name][:-1] + b"\x03"
    (raw / f"{name}.gz").write_bytes(gzip.compress(altered))
    with pytest.raises(DataError) as caught:
        load_dataset("mnist", root=tmp_path, download=False)
    for part in (name, hashlib.md5(contents[name]).hexdigest(), hashlib.md5(altered).hexdigest()):
        assert part in str(caught.value)


@pytest.mark.parametrize("damage", [lambda packed: packed[:-20], lambda packed: b"no gzip", lambda packed: b""])
def test_a_damaged_archive_is_refused(tmp_path: Path, contents: dict[str, bytes], damage: object) -> None:
    raw = write(tmp_path, contents)
    path = raw / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=path.name):
        load_dataset("mnist", root=tmp_path, download=False)


def test_missing_files_are_listed_with_the_remedy(tmp_path: Path, contents: dict[str, bytes]) -> None:
    raw = write(tmp_path, contents)
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"MNIST/raw/t10k-labels-idx1-ubyte\[\.gz\]; allow the download") as caught:
        load_dataset("mnist", root=tmp_path, download=False)
    assert str(tmp_path) in str(caught.value)
    assert "train-images" not in str(caught.value)


def test_fashion_has_its_own_folder_and_classes(tmp_path: Path) -> None:
    write(tmp_path, make_contents(), "FashionMNIST/raw")
    dataset = load_dataset("fashion-mnist", root=tmp_path, download=False)
    assert dataset.name == "fashion-mnist"
    assert dataset.classes[9] == "ankle boot"


def test_labels_that_are_no_class_are_refused(tmp_path: Path) -> None:
    contents = make_contents()
    contents["t10k-labels-idx1-ubyte"] = pack_idx(np.full(10, 17, dtype=np.uint8))
    write(tmp_path, contents, "FashionMNIST/raw")
    with pytest.raises(DataError, match="labels run from 17 to 17; with 10 classes, 0 to 9"):
        load_dataset("fashion-mnist", root=tmp_path, download=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x00", "not an IDX file of unsigned bytes"),
        (b"\x00\x00\x08\x03\x00\x00\x00\x01", "cut short"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x03ab", r"header says \[3\], 2 bytes follow"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x01ab", "padded"),
    ],
)
def test_a_wrong_header_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        idx.parse_idx(content, Path("some-file"))


def test_an_idx_file_of_no_elements_is_empty() -> None:
    assert idx.parse_idx(b"\x00\x00\x08\x01\x00\x00\x00\x00", Path("some-file")).shape == (0,)


@pytest.mark.skipif(
    not (Path(os.environ.get("SETPOINT_DATA", "/nowhere")) / "MNIST").is_dir(),
    reason="SETPOINT_DATA names no folder with MNIST",
)
def test_real_mnist() -> None:
    dataset = load_dataset("mnist", download=False)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (55_000, 5_000, 10_000)
    assert dataset.mean[0] == pytest.approx(0.1307, abs=5e-4)
    assert dataset.std[0] == pytest.approx(0.3081, abs=5e-4)
    assert dataset.test.targets[:5].tolist() == [7, 2, 1, 0, 4]
