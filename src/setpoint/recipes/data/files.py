"""Where data lie, and what is said of those that are missing or damaged."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from setpoint.recipes.data.dataset import DataError

ENVIRONMENT_VARIABLE = "SETPOINT_DATA"


def cache_folder() -> Path:
    """Return setpoint's folder in the user's cache: under ``XDG_CACHE_HOME`` if that is set, else ``~/.cache``."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification says that relative paths are to be ignored.
    return (base if base.is_absolute() else Path.home() / ".cache") / "setpoint"


def data_folder(root: Path | str | None = None) -> Path:
    """Return the folder that holds the data sets: ``root``, or what ``SETPOINT_DATA`` names, or one in the cache.

    Only the one in the cache need not exist yet: a misspelt folder should be noticed, not filled by a download.

    Raises:
        DataError: If ``root`` or ``SETPOINT_DATA`` names a folder that does not exist.
    """
    if root is not None:
        return _existing_folder(Path(root), "root")
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        return _existing_folder(Path(named), ENVIRONMENT_VARIABLE)
    return cache_folder() / "data"


def _existing_folder(path: Path, origin: str) -> Path:
    path = path.expanduser()
    if not path.is_dir():
        what = "a file" if path.exists() else "missing"
        raise DataError(
            f"{origin} names {str(path)!r} as the data folder, which is {what}; create that folder, name another one, "
            f"or leave {origin} unset to use {str(cache_folder() / 'data')!r}"
        )
    return path


def missing_data(name: str, folder: Path, wanted: Sequence[str], *, download: bool) -> DataError:
    """Return the error for a data set that is not there: what was looked for, where, and what can be done.

    Args:
        name: Name of the data set.
        folder: The data folder.
        wanted: Paths below the folder, any spelling that helps a reader.
        download: Whether the data set can be downloaded (then the error offers it).
    """
    allow = "allow the download (download=True), " if download else ""
    return DataError(
        f"{name}: looked in {str(folder)!r} and did not find {', '.join(wanted)}; {allow}put the data there, "
        f"or name a folder that has them with root or {ENVIRONMENT_VARIABLE}"
    )


def check_md5(content: bytes, expected: str, path: Path | str) -> None:
    """Check bytes against an MD5 checksum (it guards against damage and mix-ups, not against an attacker).

    Raises:
        DataError: If the checksum is another one; it names ``path``.
    """
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise wrong_checksum(path, expected, found)


def wrong_checksum(path: Path | str, expected: str, found: str) -> DataError:
    """Return the error for content whose MD5 checksum is not the published one."""
    return DataError(
        f"{str(path)!r} is damaged or another file: MD5 {expected} was expected, {found} was found; "
        f"delete it and fetch it again"
    )
