"""What somebody asked for as plain values, which can be saved, compared and shown."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

_DIGEST = 8


def comparable(value: Any) -> Any:
    """A value as plain ones: the same for what asks for the same, in any process and on any device.

    Args:
        value: anything; numbers, texts, sequences and mappings of them stay what they are. Of tensors and arrays the
            shape and the numbers count, each to the last bit, whatever their type and wherever they are; of objects
            their class and what they hold.

    Returns:
        Numbers, texts, None, and lists and dicts of them.
    """
    return _plain(value, ())


def _plain(value: Any, around: tuple[int, ...]) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return "nan"  # which equals itself
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biufc"):
        return _numbers(torch.as_tensor(value))
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, bytes | torch.dtype | torch.device):
        return str(value)
    if id(value) in around:
        return "..."  # it holds itself
    inside = (*around, id(value))
    if isinstance(value, Mapping):
        return {str(_plain(key, inside)): _plain(held, inside) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(held, inside) for held in value]
    if isinstance(value, Set):
        return sorted((_plain(held, inside) for held in value), key=repr)
    return _object(value, inside)


def _object(value: Any, inside: tuple[int, ...]) -> Any:
    named = {"class": _plain(type(value), inside)}
    if is_dataclass(value):
        held = {field.name: getattr(value, field.name) for field in fields(value) if field.compare}
        return {**named, **{name: _plain(each, inside) for name, each in held.items()}}
    try:
        made = value.__reduce_ex__(2)
    except Exception:  # it is not pickled, and may say so in any way
        return named
    return {**named, "holds": made if isinstance(made, str) else _plain(made[1:3], inside)}


def _numbers(tensor: Tensor) -> str:
    found = tensor.detach().cpu()
    found = found if found.layout is torch.strided else found.to_dense()
    exact = found.to(torch.complex128 if found.is_complex() else torch.float64).resolve_conj()
    # Adding zero takes the sign off zeros.
    digest = hashlib.blake2b((exact.contiguous() + 0.0).numpy().tobytes(), digest_size=_DIGEST).hexdigest()
    return f"numbers of shape {tuple(exact.shape)}, {digest}"
