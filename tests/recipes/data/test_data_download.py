"""Downloads: complete and checked, or not there at all. No test uses the network."""

import gzip
import hashlib
import io
from pathlib import Path
from urllib.error import URLError

import pytest

from setpoint.recipes.data import DataError, download, load_dataset
from setpoint.recipes.data.download import download_file

URL = "https://example.org/file.gz"
CONTENT = gzip.compress(b"content")
MD5 = hashlib.md5(CONTENT).hexdigest()


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes) -> list[str]:
    """Answer every request with ``content``; returns the list of URLs asked for."""
    asked: list[str] = []

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        assert timeout > 0
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(download, "urlopen", urlopen)
    return asked


def disconnect(monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(url: str, timeout: float) -> io.BytesIO:
        raise URLError("no route to host")

    monkeypatch.setattr(download, "urlopen", urlopen)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_right_file_is_put_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch, CONTENT)
    destination = tmp_path / "new/folder/file.gz"
    download_file(URL, destination, md5=MD5)
    assert destination.read_bytes() == CONTENT
    assert files_below(tmp_path) == [destination]
    assert asked == [URL]


def test_a_wrong_checksum_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, b"something else")
    with pytest.raises(DataError) as caught:
        download_file(URL, tmp_path / "file.gz", md5=MD5)
    for part in (URL, MD5, hashlib.md5(b"something else").hexdigest()):
        assert part in str(caught.value)
    assert files_below(tmp_path) == []


def test_a_wrong_checksum_leaves_an_older_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, b"something else")
    (tmp_path / "file.gz").write_bytes(b"older")
    with pytest.raises(DataError):
        download_file(URL, tmp_path / "file.gz", md5=MD5)
    assert (tmp_path / "file.gz").read_bytes() == b"older"


def test_a_broken_connection_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 0:
                raise ConnectionResetError("connection reset by peer")
            return super().read(4)

    monkeypatch.setattr(download, "urlopen", lambda url, timeout: Broken(CONTENT))
    with pytest.raises(DataError, match="connection reset by peer"):
        download_file(URL, tmp_path / "file.gz", md5=MD5)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte.gz"),
        ("fashion-mnist", "FashionMNIST/raw/train-images-idx3-ubyte.gz"),
        ("cifar10", "cifar-10-python.tar.gz"),
        ("tinyshakespeare", "text/tinyshakespeare.txt"),
    ],
)
def test_without_a_network_the_remedy_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, path: str
) -> None:
    disconnect(monkeypatch)
    with pytest.raises(DataError) as caught:
        load_dataset(name, root=tmp_path)
    for part in (str(tmp_path / path), "no route to host", "put the file there by hand", "SETPOINT_DATA"):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_only_missing_files_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch, b"something else")
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte"):
        (raw / name).touch()
    with pytest.raises(DataError):
        load_dataset("mnist", root=tmp_path)
    assert asked == ["https://ossci-datasets.s3.amazonaws.com/mnist/t10k-labels-idx1-ubyte.gz"]


def test_the_default_folder_is_made_by_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SETPOINT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("setpoint.recipes.data.cifar.ARCHIVE_MD5", MD5)
    serve(monkeypatch, CONTENT)
    with pytest.raises(DataError, match="not a readable tar archive"):  # it came through, but is no CIFAR-10
        load_dataset("cifar10")
    assert files_below(tmp_path) == [tmp_path / "setpoint/data/cifar-10-python.tar.gz"]
