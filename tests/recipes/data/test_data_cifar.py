"""CIFAR-10: the pickled original, read safely, and the JPEG copy with its cache."""

import gzip
import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from setpoint.recipes.data import DataError, cifar, cifar_jpeg, load_dataset
from setpoint.recipes.data.unpickling import load_arrays

PER_BATCH = 4


def short(text: bytes) -> bytes:
    """A string of Python 2, as pickle writes it."""
    return b"U" + bytes([len(text)]) + text


def pickle_as_python_2(data: np.ndarray, labels: list[int]) -> bytes:
    """The opcodes that Python 2 and the NumPy of its time wrote: what the published batches consist of."""
    pixels = data.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + short(b"b") + b"tR"
        b"(K\x01(K" + bytes([data.shape[0]]) + b"M" + data.shape[1].to_bytes(2, "little") + b"t"
        b"cnumpy\ndtype\n("
        + short(b"u1")
        + b"K\x00K\x01tR(K\x03"
        + short(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + len(pixels).to_bytes(4, "little") + pixels + b"tb"
    )
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + short(b"data") + array + short(b"labels") + listed + b"u."


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Six tiny batches, whose checksums stand in the tables in place of the real ones."""
    random = np.random.default_rng(0)
    batches = {}
    for table in ("TRAIN_BATCHES", "TEST_BATCHES"):
        checksums = {}
        for name in getattr(cifar, table):
            data = random.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8)
            batches[name] = pickle_as_python_2(data, random.integers(0, 10, PER_BATCH).tolist())
            checksums[name] = hashlib.md5(batches[name]).hexdigest()
        monkeypatch.setattr(cifar, table, checksums)
    return batches


def write_folder(root: Path, batches: dict[str, bytes]) -> None:
    (root / cifar.FOLDER).mkdir()
    for name, content in batches.items():
        (root / cifar.FOLDER / name).write_bytes(content)


def write_tar(path: Path, contents: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_archive(root: Path, batches: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / cifar.ARCHIVE
    write_tar(path, {f"{cifar.FOLDER}/{name}": content for name, content in batches.items()})
    monkeypatch.setattr(cifar, "ARCHIVE_MD5", hashlib.md5(path.read_bytes()).hexdigest())


def jpeg(color: tuple[int, int, int], size: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), color).save(buffer, "JPEG")
    return buffer.getvalue()


def write_jpegs(root: Path) -> None:
    for part, count in (("train", 3), ("test", 1)):
        images = {
            f"{name}/{index:04}.jpg": jpeg((20 * label, 10 * index, 128))
            for label, name in enumerate(cifar_jpeg.CLASSES)
            for index in range(count)
        }
        write_tar(root / "cifar10-jpeg" / f"{part}.tar.gz", images)


def test_the_unpacked_batches_are_read(root: Path, batches: dict[str, bytes]) -> None:
    write_folder(root, batches)
    dataset = load_dataset("cifar10", root=root, download=False)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (18, 2, 4)
    assert (dataset.name, dataset.shape, dataset.augmentation) == ("cifar10", (3, 32, 32), "flip_crop")
    test_batch = load_arrays(batches["test_batch"], "test_batch")
    assert np.array_equal(dataset.test.inputs.numpy().reshape(PER_BATCH, -1), test_batch[b"data"])
    assert dataset.test.targets.tolist() == test_batch[b"labels"]


def test_the_archive_gives_the_same_as_the_folder(
    root: Path, batches: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(root, batches, monkeypatch)
    from_archive = load_dataset("cifar10", root=root, download=False)
    write_folder(root, batches)
    from_folder = load_dataset("cifar10", root=root, download=False)
    assert from_archive.train.inputs.equal(from_folder.train.inputs)
    assert from_archive.mean == from_folder.mean


def test_the_original_is_preferred_to_jpeg(
    root: Path, batches: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jpegs(root)
    assert load_dataset("cifar10", root=root, download=False).name == "cifar10-jpeg"
    write_archive(root, batches, monkeypatch)
    assert load_dataset("cifar10", root=root, download=False).name == "cifar10"
    assert load_dataset("cifar10-jpeg", root=root, download=False).name == "cifar10-jpeg"


def test_an_altered_batch_or_archive_is_refused(root: Path, batches: dict[str, bytes]) -> None:
    write_tar(root / cifar.ARCHIVE, {"anything": b""})
    with pytest.raises(DataError, match=rf"{cifar.ARCHIVE}' is damaged or another file: MD5 {cifar.ARCHIVE_MD5}"):
        load_dataset("cifar10", root=root, download=False)
    write_folder(root, batches | {"data_batch_3": batches["data_batch_3"] + b"."})
    with pytest.raises(DataError, match="data_batch_3' is damaged"):
        load_dataset("cifar10", root=root, download=False)


def test_an_archive_without_a_batch_is_refused(
    root: Path, batches: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    del batches["test_batch"]
    write_archive(root, batches, monkeypatch)
    with pytest.raises(DataError, match="holds no file 'cifar-10-batches-py/test_batch'"):
        load_dataset("cifar10", root=root, download=False)


@pytest.mark.parametrize("content", [{b"data": [1]}, {b"data": [1], b"labels": [1]}, [1, 2], 3])
def test_a_batch_of_something_else_is_refused(
    root: Path, batches: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, content: object
) -> None:
    blob = pickle.dumps(content)
    monkeypatch.setitem(cifar.TEST_BATCHES, "test_batch", hashlib.md5(blob).hexdigest())
    write_folder(root, batches | {"test_batch": blob})
    with pytest.raises(DataError, match="test_batch"):
        load_dataset("cifar10", root=root, download=False)


def test_missing_data_are_listed(root: Path) -> None:
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz, cifar10-jpeg/{train,test}\.tar\.gz") as caught:
        load_dataset("cifar10", root=root, download=False)
    assert str(root) in str(caught.value)
    with pytest.raises(DataError, match=r"cifar10-jpeg/{train,test}\.tar\.gz; put the data there"):
        load_dataset("cifar10-jpeg", root=root)


def test_jpegs_are_decoded_by_class(root: Path) -> None:
    write_jpegs(root)
    dataset = load_dataset("cifar10", root=root, download=False)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (27, 3, 10)
    assert dataset.test.targets.tolist() == list(range(10))
    reds = dataset.test.inputs[:, 0].float().mean(dim=(1, 2))
    assert reds.tolist() == pytest.approx([20 * label for label in range(10)], abs=3)


def decoded_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache/setpoint/decoded").iterdir())


def test_jpegs_are_decoded_once(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jpegs(root)
    first = load_dataset("cifar10", root=root, download=False)
    assert [path.suffix for path in decoded_files(tmp_path)] == [".npz", ".npz"]
    monkeypatch.setattr(cifar_jpeg, "_decode", lambda archive: pytest.fail("decoded again"))
    second = load_dataset("cifar10", root=root, download=False)
    assert first.train.inputs.equal(second.train.inputs)
    assert first.test.targets.equal(second.test.targets)


@pytest.mark.parametrize("damage", [lambda blob: b"", lambda blob: b"nonsense", lambda blob: blob[: len(blob) // 2]])
def test_a_broken_cache_is_rebuilt(tmp_path: Path, root: Path, damage: object) -> None:
    write_jpegs(root)
    first = load_dataset("cifar10", root=root, download=False)
    whole = {path: path.read_bytes() for path in decoded_files(tmp_path)}
    for path, blob in whole.items():
        path.write_bytes(damage(blob))  # type: ignore[operator]
    second = load_dataset("cifar10", root=root, download=False)
    assert first.train.inputs.equal(second.train.inputs)
    assert [path.stat().st_size for path in decoded_files(tmp_path)] == [len(blob) for blob in whole.values()]


def test_a_flipped_byte_in_the_cache_is_noticed(tmp_path: Path, root: Path) -> None:
    write_jpegs(root)
    first = load_dataset("cifar10", root=root, download=False)
    for path in decoded_files(tmp_path):
        blob = bytearray(path.read_bytes())
        blob[1000] ^= 1
        path.write_bytes(blob)
    assert load_dataset("cifar10", root=root, download=False).train.inputs.equal(first.train.inputs)


def test_another_archive_has_another_cache(tmp_path: Path, root: Path) -> None:
    write_jpegs(root)
    load_dataset("cifar10", root=root, download=False)
    images = {f"{name}/0000.jpg": jpeg((250, 0, 0)) for name in cifar_jpeg.CLASSES}
    write_tar(root / "cifar10-jpeg/test.tar.gz", images)
    assert load_dataset("cifar10", root=root, download=False).test.inputs[:, 0].min() > 240
    assert len(decoded_files(tmp_path)) == 3


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, root: Path) -> None:
    write_jpegs(root)
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(load_dataset("cifar10", root=root, download=False).test) == 10


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({}, "holds no images"),
        ({"zebra/0000.jpg": jpeg((0, 0, 0))}, "'zebra/0000.jpg' lies in none of the folders airplane"),
        ({"cat/0000.jpg": b"no image"}, "cat/0000.jpg' is not a readable image"),
        ({"cat/0000.jpg": jpeg((0, 0, 0))[:300]}, "cat/0000.jpg' is not a readable image"),
        ({"cat/0000.jpg": jpeg((0, 0, 0), size=16)}, r"has \(16, 16\) pixels; CIFAR-10 has \(32, 32\)"),
    ],
)
def test_a_foreign_jpeg_archive_is_refused(root: Path, images: dict[str, bytes], message: str) -> None:
    write_jpegs(root)
    write_tar(root / "cifar10-jpeg/train.tar.gz", images)
    with pytest.raises(DataError, match=message):
        load_dataset("cifar10", root=root, download=False)


def test_a_jpeg_archive_that_is_no_tar_is_refused(root: Path) -> None:
    write_jpegs(root)
    (root / "cifar10-jpeg/test.tar.gz").write_bytes(gzip.compress(b"no tar"))
    with pytest.raises(DataError, match=r"test\.tar\.gz' is not a readable tar archive"):
        load_dataset("cifar10", root=root, download=False)


def test_an_altered_jpeg_archive_is_refused(root: Path) -> None:
    write_jpegs(root)
    path = root / "cifar10-jpeg/train.tar.gz"
    blob = bytearray(path.read_bytes())
    blob[-6] ^= 1
    path.write_bytes(blob)
    with pytest.raises(DataError, match=r"train.tar.gz' is damaged"):
        load_dataset("cifar10", root=root, download=False)
