"""A safetensors file with a checksum over its content, written atomically.

The layout is the ``safetensors`` package's, so that every reader of safetensors opens the file. What is added here is
metadata with a version and a checksum, a write that happens whole or not at all, and a read that checks and loads the
same bytes.

The checksum covers the content, which is all that is ever loaded: names, dtypes, shapes, entries and metadata. The
package orders the metadata at random, so that the bytes of two files with the same content and checksum may differ.
It finds damage. It is no signature: whoever forges a file can forge its checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import torch as safetensors
from torch import Tensor

from setpoint.deploy.words import flatten
from setpoint.writing import atomic_path

VERSION = "1"

_LENGTH_BYTES = 8
_MOST_HEADER = 100_000_000

STORABLE = frozenset(
    {
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    }
)
"""The dtypes that every release of safetensors knows."""


class ArchiveError(ValueError):
    """A file that cannot be read safely, or a state that cannot be saved or loaded."""


@dataclass(frozen=True)
class Container:
    """The content of a file whose checksum was found right.

    Attributes:
        path: Of the file, for error messages.
        size: Of the file, in bytes.
        metadata: What was given to `write_container`, and the version and checksum.
        tensors: By name, on the CPU and in memory of their own.
    """

    path: Path
    size: int
    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]

    def read(self, name: str) -> Tensor:
        """A stored tensor.

        Raises:
            ArchiveError: If there is no such tensor.
        """
        if name not in self.tensors:
            raise ArchiveError(f"{self.path}: expected a stored tensor {name!r}, found none")
        return self.tensors[name]


def write_container(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file, or leave what stands at its path as it was.

    Args:
        path: Of the file, as `atomic_path` takes it.
        tensors: By name, of the dtypes in `STORABLE`.
        metadata: Goes into the header, beside the version and the checksum.

    Raises:
        OSError: As `atomic_path`.
        ArchiveError: If the header gets longer than safetensors reads.
    """
    with atomic_path(path) as part, part.open("wb") as file:
        _write(file, _serialise(tensors, {**metadata, "setpoint": VERSION}))


def read_container(path: Path) -> Container:
    """Read a file that `write_container` wrote, once, and check what was read.

    Raises:
        FileNotFoundError: If there is no such file.
        ArchiveError: If the file is truncated, altered or was written by something else.
    """
    data = path.read_bytes()
    header = _header(data, path)
    try:
        # First, as it takes no header but of names to dtypes, shapes and places in the file, and of names to texts.
        tensors = safetensors.load(data)
    except Exception as error:  # it answers damage with errors of its own, of torch's and of Python's
        raise ArchiveError(f"{path} is truncated or altered: {error}") from error
    metadata = _read_metadata(header, path)
    found, expected = _checksum(tensors, metadata), metadata.get("checksum")
    if found != expected:
        raise ArchiveError(f"{path} is truncated or altered: expected checksum {expected}, found {found}")
    return Container(path, len(data), metadata, tensors)


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)


def _serialise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    plain = _separate({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    data: bytes = safetensors.save(plain, {**metadata, "checksum": _checksum(plain, metadata)})
    header = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if header > _MOST_HEADER:
        raise ArchiveError(f"names and metadata take {header} bytes; safetensors reads up to {_MOST_HEADER}")
    return data


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with a copy of each that shares its memory with an earlier one: the package refuses those."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return separate


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    names = sorted(tensors)
    layout = [(name, str(tensors[name].dtype), list(tensors[name].shape)) for name in names]
    notes = sorted((key, value) for key, value in metadata.items() if key != "checksum")
    digest = hashlib.sha256(json.dumps([layout, notes]).encode())
    for name in names:
        digest.update(flatten(tensors[name]).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _header(data: bytes, path: Path) -> bytes:
    """The header, which the package reads from files but not from bytes."""
    end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    if not _LENGTH_BYTES <= end <= len(data):
        found = f"it has {len(data)} bytes, no whole header"
        raise ArchiveError(f"{path} is truncated, altered or no safetensors file: {found}")
    return data[_LENGTH_BYTES:end]


def _read_metadata(header: bytes, path: Path) -> dict[str, str]:
    try:
        metadata = json.loads(header).get("__metadata__", {})
        version = metadata.get("setpoint")
    except (AttributeError, ValueError, RecursionError) as error:
        raise ArchiveError(f"{path} is altered or no safetensors file: its header is not JSON") from error
    if version is None:
        raise ArchiveError(f"{path} was not written by setpoint.save; read it with safetensors.torch.load_file")
    if version != VERSION:
        raise ArchiveError(f"{path}: expected format version {VERSION!r}, found {version!r}")
    return dict(metadata)
