"""Reading archives, with every kind of damage told as one error."""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from setpoint.recipes.data.dataset import DataError


def read_gzip(path: Path) -> bytes:
    """Return the unpacked content of a gzip file, with the checksum in it verified.

    Raises:
        DataError: If the file is cut short, altered, or not gzip.
    """
    try:
        return gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{str(path)!r} is damaged: {error}; delete it and fetch it again") from error


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo | str, archive: Path) -> bytes:
    """Return the content of one file in an open tar archive.

    Raises:
        DataError: If there is no such file in it.
    """
    try:
        file = tar.extractfile(member)
    except KeyError:
        file = None
    if file is None:
        raise DataError(f"{str(archive)!r} holds no file {str(member)!r}")
    return file.read()


@contextmanager
def open_tar(content: bytes, archive: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar archive that is in memory, compressed or not.

    Args:
        content: The archive.
        archive: Its path, for errors.

    Raises:
        DataError: If it is not a tar archive, here or while it is read.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            yield tar
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{str(archive)!r} is not a readable tar archive: {error}") from error
