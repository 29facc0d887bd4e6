"""From a state dict to an index with the tensors to store, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from setpoint.deploy.container import STORABLE, ArchiveError, Container
from setpoint.deploy.packing import Encoding, Packed, pack, unpack
from setpoint.deploy.words import Array, from_words, to_words, words_dtype, words_shape

# What is decoded of a file may take this many bytes, and this many more for each byte of the file: a few bytes can
# stand for any number of zeros, and a file that was forged must not fill the memory.
FREE_BYTES, BYTES_PER_BYTE = 1 << 28, 256
_MOST_AXES = 64


@dataclass(frozen=True)
class Entry:
    """A tensor in the index: what it is, and how it is stored.

    Attributes:
        dtype: Name of the dtype in `torch`.
        shape: Of the tensor.
        encoding: See `setpoint.deploy.packing`.
        width: Bits per code, for ``gaps``.
        parts: The arrays stored for it. Without any, the tensor is stored as it is, under its own name.
        alias: Name of an earlier tensor that this one is.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    encoding: Encoding = "dense"
    width: int = 0
    parts: tuple[str, ...] = ()
    alias: str | None = None

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def describe(tensor: Tensor) -> Entry:
    """What a tensor is, without how it is stored."""
    return Entry(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def memory(tensor: Tensor) -> tuple[object, ...]:
    """A key that is equal for two tensors which are the same memory seen the same way."""
    if not tensor.numel():
        return (id(tensor),)
    view = (tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg())
    return (tensor.device, tensor.data_ptr(), *view)


def unstorable(tensor: object) -> str | None:
    """What a thing is that is no plain tensor with data, and what to do about it; None for one that is."""
    if not isinstance(tensor, Tensor):
        return f"an object of type {type(tensor).__name__}"
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return f"a {type(tensor).__name__}: gather or unwrap it first"
    if tensor.is_meta or nn.parameter.is_lazy(tensor):
        return "a tensor without data: give the model its weights first"
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return f"a tensor of layout {tensor.layout} and dtype {tensor.dtype}: convert it first"
    return None


def encode_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Entry], dict[str, Tensor]]:
    """The index of a state dict, and the tensors to store, each of a dtype in `STORABLE`.

    Raises:
        ArchiveError: If a name is needed for a part of another tensor, or by safetensors.
    """
    index: dict[str, Entry] = {}
    stored: dict[str, Tensor] = {}
    owners: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        owner = owners.setdefault(memory(tensor), name)
        if owner == name:
            index[name], parts = _encode(name, tensor)
            _check_names(parts, stored)
            stored.update(parts)
        else:
            index[name] = replace(describe(tensor), alias=owner)
    return index, stored


def padded(index: Mapping[str, Entry], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors to store, with what it takes to keep within `most_bytes`: for gigabytes of zeros alone."""
    decoded = sum(_nbytes(_dtype(entry), entry.shape) for entry in index.values() if entry.alias is None)
    missing = -(-(decoded - FREE_BYTES) // BYTES_PER_BYTE) - sum(tensor.nbytes for tensor in stored.values())
    if missing <= 0:
        return dict(stored)
    _check_names(["#padding"], stored)
    return {**stored, "#padding": torch.zeros(missing, dtype=torch.uint8)}


def most_bytes(size: int) -> int:
    """What the tensors in a file of a size may come to, in bytes. Where they are `padded` they keep within it."""
    return FREE_BYTES + BYTES_PER_BYTE * size


def decode_state(container: Container, index: Mapping[str, Entry], device: torch.device) -> dict[str, Tensor]:
    """The state dict on a device, in which an alias is the tensor that it names.

    Raises:
        ArchiveError: If the parts of a tensor do not fit together.
    """
    state: dict[str, Tensor] = {}
    for name, entry in index.items():
        if entry.alias is None:
            state[name] = _decode(container, name, entry).to(device)
        elif entry.alias in state and str(index[entry.alias]) == str(entry):
            state[name] = state[entry.alias]
        else:
            raise ArchiveError(f"{container.path}: {name!r} is said to be {entry.alias!r}, which is no earlier {entry}")
    return state


def check_size(index: Mapping[str, Entry], container: Container) -> None:
    """Raise ArchiveError if the tensors in an index would take more memory than `most_bytes`."""
    left = most_bytes(container.size)
    for name, entry in index.items():
        if entry.alias is None:
            with _decoding(container, name, entry):
                left -= _nbytes(_dtype(entry), entry.shape)
        if left < 0:
            raise ArchiveError(
                f"{container.path}: {name!r} and what comes before it would take more than "
                f"{most_bytes(container.size)} bytes, which a file of {container.size} bytes does not hold. If it is "
                "your model's, build the model, and load into it: setpoint.load(path, model)"
            )


def dump_index(index: Mapping[str, Entry]) -> str:
    """The index as JSON, in which fields at their defaults are left out."""
    entries = {name: {key: value for key, value in asdict(entry).items() if value} for name, entry in index.items()}
    return json.dumps(entries, separators=(",", ":"))


def parse_index(text: str) -> dict[str, Entry]:
    """The inverse of `dump_index`.

    Raises:
        ValueError, TypeError, RecursionError: If it is none.
    """
    entries = json.loads(text)
    if not isinstance(entries, dict):
        raise TypeError(f"the index is no mapping but a {type(entries).__name__}")
    return {name: _parse_entry(name, fields) for name, fields in entries.items()}


def _parse_entry(name: str, fields: Any) -> Entry:
    entry = Entry(**{**fields, "shape": tuple(fields.get("shape", ())), "parts": tuple(fields.get("parts", ()))})
    texts = [entry.dtype, entry.encoding, *entry.parts, *([] if entry.alias is None else [entry.alias])]
    numbers = [entry.width, *entry.shape]
    whole = all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
    if not whole or len(entry.shape) > _MOST_AXES or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"the entry {name!r} of the index is malformed")
    return entry


def _encode(name: str, tensor: Tensor) -> tuple[Entry, dict[str, Tensor]]:
    words = to_words(tensor)
    packed = pack(words)
    if packed.parts.keys() == {"values"} and packed.parts["values"].size == words.size:
        return describe(tensor), {name: _storable(words, tensor.dtype, tensor.shape)}
    entry = replace(describe(tensor), encoding=packed.encoding, width=packed.width, parts=tuple(packed.parts))
    dtypes = {"values": tensor.dtype}
    parts = packed.parts.items()
    return entry, {f"{name}#{p}": _storable(array, dtypes.get(p, torch.uint8), array.shape) for p, array in parts}


def _storable(words: Array, dtype: torch.dtype, shape: Iterable[int]) -> Tensor:
    """Words as the tensor they are, or as integers where not every release of safetensors knows the dtype."""
    return from_words(words, dtype, tuple(shape)) if dtype in STORABLE else torch.from_numpy(words)


def _decode(container: Container, name: str, entry: Entry) -> Tensor:
    with _decoding(container, name, entry):
        dtype = _dtype(entry)
        return from_words(_decode_words(container, name, entry, dtype), dtype, entry.shape)


@contextmanager
def _decoding(container: Container, name: str, entry: Entry) -> Iterator[None]:
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError, ArithmeticError, MemoryError) as error:
        how = f"expected {entry} in {entry.encoding} form"
        raise ArchiveError(f"{container.path}: cannot decode {name!r}, {how}: {error}") from error


def _decode_words(container: Container, name: str, entry: Entry, dtype: torch.dtype) -> Array:
    like = dtype if dtype in STORABLE else words_dtype(dtype)
    shape = words_shape(dtype, entry.shape)
    if not entry.parts:
        return to_words(_checked(container, name, like, entry.shape if like == dtype else shape))
    stored = {
        part: _checked(container, f"{name}#{part}", like if part == "values" else torch.uint8) for part in entry.parts
    }
    parts = {part: to_words(tensor) if part == "values" else tensor.numpy() for part, tensor in stored.items()}
    return unpack(Packed(entry.encoding, entry.width, parts), shape)


def _checked(container: Container, name: str, dtype: torch.dtype, shape: Sequence[int] | None = None) -> Tensor:
    tensor = container.read(name)
    fits = tensor.dtype == dtype and (tensor.dim() == 1 if shape is None else tuple(tensor.shape) == tuple(shape))
    if not fits:
        raise ValueError(f"{name!r} is stored as {describe(tensor)}")
    return tensor


def _dtype(entry: Entry) -> torch.dtype:
    dtype = getattr(torch, entry.dtype)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"torch.{entry.dtype} is no dtype")
    return dtype


def _nbytes(dtype: torch.dtype, shape: Iterable[int]) -> int:
    return dtype.itemsize * math.prod(shape)


def _check_names(parts: Iterable[str], stored: Mapping[str, Tensor]) -> None:
    for name in parts:
        if name in stored or name == "__metadata__":
            raise ArchiveError(f"cannot save two things under the name {name!r}; rename one of the tensors")
