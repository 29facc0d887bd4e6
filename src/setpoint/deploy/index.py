"""From a state dict to an index with the tensors to store, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from setpoint.deploy.container import STORABLE, ArchiveError, Container
from setpoint.deploy.packing import Encoding, Packed, pack, unpack
from setpoint.deploy.words import Array, from_words, to_words, words_shape


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


def decode_state(container: Container, index: Mapping[str, Entry], device: torch.device) -> dict[str, Tensor]:
    """The state dict on a device, in which an alias is the tensor that it names.

    Raises:
        ArchiveError: If the parts of a tensor do not fit together.
    """
    state: dict[str, Tensor] = {}
    for name, entry in index.items():
        state[name] = state[entry.alias] if entry.alias else _decode(container, name, entry).to(device)
    return state


def dump_index(index: Mapping[str, Entry]) -> str:
    """The index as JSON, in which fields at their defaults are left out."""
    entries = {name: {key: value for key, value in asdict(entry).items() if value} for name, entry in index.items()}
    return json.dumps(entries, separators=(",", ":"))


def parse_index(text: str) -> dict[str, Entry]:
    """The inverse of `dump_index`."""
    return {name: _parse_entry(**fields) for name, fields in json.loads(text).items()}


def _parse_entry(shape: Iterable[int] = (), parts: Iterable[str] = (), **fields: Any) -> Entry:
    return Entry(shape=tuple(shape), parts=tuple(parts), **fields)


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
    try:
        dtype = getattr(torch, entry.dtype)
        return from_words(_decode_words(container, name, entry, dtype), dtype, entry.shape)
    except (AttributeError, LookupError, RuntimeError, ValueError) as error:
        how = f"expected {entry} in {entry.encoding} form"
        raise ArchiveError(f"{container.path}: cannot decode {name!r}, {how}: {error}") from error


def _decode_words(container: Container, name: str, entry: Entry, dtype: torch.dtype) -> Array:
    if not entry.parts:
        return to_words(container.read(name))
    stored = {part: container.read(f"{name}#{part}") for part in entry.parts}
    parts = {part: to_words(tensor) if part == "values" else tensor.numpy() for part, tensor in stored.items()}
    return unpack(Packed(entry.encoding, entry.width, parts), words_shape(dtype, entry.shape))


def _check_names(parts: Iterable[str], stored: Mapping[str, Tensor]) -> None:
    for name in parts:
        if name in stored or name == "__metadata__":
            raise ArchiveError(f"cannot save two things under the name {name!r}; rename one of the tensors")
