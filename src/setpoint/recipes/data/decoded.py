"""A cache of decoded archives, so that images are decompressed once and not at every run."""

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from setpoint.recipes.data.files import cache_folder
from setpoint.writing import atomic_path

Arrays: TypeAlias = dict[str, np.ndarray[Any, Any]]

# Whatever a damaged zip file of arrays can raise.
_BROKEN = (OSError, ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)

logger = logging.getLogger(__name__)


def decoded_once(archive: Path, name: str, decode: Callable[[Path], Arrays]) -> Arrays:
    """Return ``decode(archive)``, from the user's cache if this very archive was decoded before.

    The cache is keyed by the archive's size and MD5 checksum. It lies in the user's cache folder, because the data
    folder may be read-only; a cache that is damaged is rebuilt, one that cannot be written is done without.

    Args:
        archive: The file to decode.
        name: What the file is, the first part of the cache file's name.
        decode: Makes named arrays of an archive.
    """
    cached = _cache_path(archive, name)
    if (arrays := _read(cached)) is not None:
        return arrays
    arrays = decode(archive)
    _write(cached, arrays)
    return arrays


def _cache_path(archive: Path, name: str) -> Path:
    content = archive.read_bytes()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return cache_folder() / "decoded" / f"{name}-{len(content)}-{md5}.npz"


def _read(path: Path) -> Arrays | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in ("images", "labels")}
    except _BROKEN as error:
        logger.warning("the cache %s is damaged (%s) and will be rebuilt", path, error)
        return None


def _write(path: Path, arrays: Arrays) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as part, part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        logger.warning("the decoded images could not be kept in %s: %s", path, error)
