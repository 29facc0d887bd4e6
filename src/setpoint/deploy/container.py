"""A safetensors file with a checksum over all of its bytes, written atomically.

The layout is plain safetensors: the length of the header (8 bytes, little-endian), the header (JSON), the bytes of the
tensors. Every reader of safetensors opens it. It is written here, not by the ``safetensors`` package, for three
reasons: that one orders the metadata at random, so that saving twice gives two different files; it holds a second copy
of all tensors in memory; and a file it reads is opened anew, after whoever checked it.

The checksum finds damage. It is no signature: whoever forges a file can forge its checksum.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import torch
from torch import Tensor

from setpoint.deploy.words import flatten

VERSION = "1"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_LENGTH_BYTES = 8
_CHUNK_BYTES = 1 << 20
# Every header starts with these bytes, so that the checksum has one place, whatever names and metadata follow.
_MAGIC = f'{{"__metadata__":{{"setpoint":"{VERSION}","checksum":"'.encode()
_CHECKSUM = slice(_LENGTH_BYTES + len(_MAGIC), _LENGTH_BYTES + len(_MAGIC) + 64)
_BLANK = b"0" * 64

STORABLE = frozenset(_CODES)
"""The dtypes that every release of safetensors knows."""


class ArchiveError(ValueError):
    """A file that cannot be read safely, or a state that cannot be saved or loaded."""


@dataclass(frozen=True)
class Container:
    """An open file whose checksum was found right.

    Attributes:
        path: Of the file, for error messages.
        metadata: What was given to `write_container`.
        layout: The safetensors header: dtype, shape and place of every tensor.
        start: Where the tensors' bytes begin.
        file: The open file: the one that was checked, even if the path has been replaced since.
    """

    path: Path
    metadata: Mapping[str, str]
    layout: Mapping[str, Mapping[str, Any]]
    start: int
    file: io.BufferedReader

    def read(self, name: str) -> Tensor:
        """A stored tensor, on the CPU and in memory of its own.

        Raises:
            ArchiveError: If there is no such tensor, or it does not lie inside the file.
        """
        if name not in self.layout:
            raise ArchiveError(f"{self.path}: expected a stored tensor {name!r}, found none")
        begin, end = self.layout[name]["data_offsets"]
        data = torch.empty(end - begin, dtype=torch.uint8)
        self.file.seek(self.start + begin)
        if self.file.readinto(data.numpy().data) != data.numel():
            raise ArchiveError(f"{self.path}: the file ends inside tensor {name!r}")
        return data.view(_DTYPES[self.layout[name]["dtype"]]).reshape(self.layout[name]["shape"])


def write_container(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file, or leave what stands at its path as it was.

    Args:
        path: Of the file. A symbolic link is followed, so that it still is one afterwards.
        tensors: By name, of the dtypes in `STORABLE`.
        metadata: Goes into the header, beside the version and the checksum.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {target.parent} does not exist; create it first")
    temporary = target.with_name(f".{uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            _write(file, tensors, metadata)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def open_container(path: Path) -> Iterator[Container]:
    """Open a file that `write_container` wrote, after a check of every byte in it.

    Raises:
        FileNotFoundError: If there is no such file.
        ArchiveError: If the file is truncated, altered or was written by something else.
    """
    with path.open("rb") as file:
        head = _read_head(file, path)
        _check_origin(head, path)
        _check_bytes(file, head, path)
        layout = json.loads(head[_LENGTH_BYTES:])
        yield Container(path, layout.pop("__metadata__"), layout, len(head), file)


def _write(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    # Wide entries first, so that all of them lie aligned in a memory-mapped file.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    head = _head({name: tensors[name] for name in names}, metadata)
    digest = hashlib.sha256(head)
    file.write(head)
    for name in names:
        data = flatten(tensors[name].detach().cpu()).view(torch.uint8).numpy().data
        digest.update(data)
        file.write(data)
    file.seek(_CHECKSUM.start)
    file.write(digest.hexdigest().encode())


def _head(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The length and the JSON header, with zeros in place of the checksum."""
    own = {"setpoint": VERSION, "checksum": _BLANK.decode()}
    header: dict[str, Any] = {"__metadata__": {**own, **metadata}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _read_head(file: io.BufferedReader, path: Path) -> bytes:
    size = os.fstat(file.fileno()).st_size
    length = file.read(_LENGTH_BYTES)
    expected = _LENGTH_BYTES + int.from_bytes(length, "little")
    if len(length) < _LENGTH_BYTES or expected > size:
        raise ArchiveError(f"{path} is truncated, altered or no safetensors file: it has {size} bytes, no whole header")
    return length + file.read(expected - _LENGTH_BYTES)


def _check_origin(head: bytes, path: Path) -> None:
    if head.startswith(_MAGIC, _LENGTH_BYTES):
        return
    try:
        metadata = json.loads(head[_LENGTH_BYTES:]).get("__metadata__", {})
    except (AttributeError, ValueError, RecursionError) as error:
        raise ArchiveError(f"{path} is altered or no safetensors file: its header is not JSON") from error
    if "setpoint" not in metadata:
        raise ArchiveError(f"{path} was not written by setpoint.save; read it with safetensors.torch.load_file")
    found = metadata["setpoint"]
    raise ArchiveError(f"{path}: expected format version {VERSION!r} and its checksum in the header, found {found!r}")


def _check_bytes(file: io.BufferedReader, head: bytes, path: Path) -> None:
    digest = hashlib.sha256(head[: _CHECKSUM.start] + _BLANK + head[_CHECKSUM.stop :])
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    found, expected = digest.hexdigest(), head[_CHECKSUM].decode(errors="replace")
    if found != expected:
        raise ArchiveError(f"{path} is truncated or altered: expected checksum {expected}, found {found}")
