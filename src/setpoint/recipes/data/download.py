"""Fetching a published file over the network, whole and checked, or not at all."""

import hashlib
import logging
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.request import urlopen

from setpoint.recipes.data.dataset import DataError
from setpoint.recipes.data.files import ENVIRONMENT_VARIABLE, wrong_checksum
from setpoint.writing import atomic_path

_TIMEOUT_SECONDS = 30
_BLOCK_BYTES = 1 << 20

logger = logging.getLogger(__name__)


def download_file(url: str, destination: Path, *, md5: str) -> None:
    """Download ``url`` to ``destination``, which appears only once its content is complete and right.

    Raises:
        DataError: If the network or the folder refuses, or the MD5 checksum is not ``md5``. No file is left behind.
    """
    logger.info("downloading %s to %s", url, destination)
    try:
        # The connection comes first: without a network, not even a folder is made.
        with urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            destination.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(destination) as part:
                _store(response, part, url, md5)
    except (OSError, HTTPException) as error:
        raise DataError(
            f"{str(destination)!r} is missing and could not be downloaded from {url}: {error}; without a network, put "
            f"the file there by hand, or name a folder that has it with root or {ENVIRONMENT_VARIABLE}"
        ) from error


def _store(source: IO[bytes], path: Path, url: str, md5: str) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("wb") as file:
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != md5:
        raise wrong_checksum(url, md5, digest.hexdigest())
