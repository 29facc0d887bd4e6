"""A device that is none: its tensors are on the CPU, and every operation on them is counted.

What a GPU costs beside its arithmetic can be told without one: how many operations it is given, and how often the
program waits for it to read a number or to hand one over. Tensors of two devices in one operation are refused, as
there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

# A device type that torch has a name for and the released builds no backend.
DEVICE = torch.device("lazy", 0)

_aten = torch.ops.aten
# Their results have a size, or are a number, that the program has to wait for.
_READS = {
    _aten._local_scalar_dense.default,
    _aten.equal.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.bincount.default,
    _aten._unique2.default,
    _aten.unique_consecutive.default,
}
# They look at sizes only.
_FREE = {_aten.detach.default, _aten.lift_fresh.default, _aten.alias.default, _aten._unsafe_view.default}


class _Generator(torch.Generator):
    def __new__(cls, device: Any = None) -> _Generator:
        return super().__new__(cls, "cpu")


@dataclass
class Counts:
    """What the device was asked to do.

    Attributes:
        launches: operations on its memory.
        waits: those after which the program had to wait for it, by name.
    """

    launches: int = 0
    waits: list[str] = field(default_factory=list)


class OnDevice(Tensor):
    """A tensor of the device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        made: OnDevice = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.inner!r})"

    def tolist(self) -> Any:
        """Not of subclasses."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on the pretended device, outside of `pretended_device()`")


class _Mode(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        ours = [t for t in given if isinstance(t, OnDevice)]
        asked = kwargs.get("device")
        if not ours and (asked is None or asked.type != DEVICE.type):
            return func(*args, **kwargs)
        others = [t for t in given if not isinstance(t, OnDevice) and (t.ndim or "masked_fill" in str(func))]
        copies = func in (_aten._to_copy.default, _aten.copy_.default)
        # As on a GPU, numbers from the CPU go along, though not as masks, and so do its indices.
        if ours and others and not copies and "index" not in str(func):
            raise RuntimeError(f"{func}: tensors on {DEVICE} and on the CPU")
        leaves = asked is not None and asked.type == "cpu"
        self._count(func, args, kwargs, leaves, bool(ours), bool(others))
        inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
        if asked is not None:
            inner_kwargs["device"] = torch.device("cpu")
        out = func(*inner_args, **inner_kwargs)
        known = {id(t.inner): t for t in ours}
        into_cpu = copies and func is _aten.copy_.default and not isinstance(args[0], OnDevice)
        if leaves or into_cpu:
            return args[0] if into_cpu else out
        return tree_map(
            lambda t: known.get(id(t), t) if not isinstance(t, Tensor) or id(t) in known else OnDevice(t), out
        )

    def _count(self, func: Any, args: Any, kwargs: Any, leaves: bool, ours: bool, others: bool) -> None:
        if func in _FREE or func.is_view:
            return
        self.counts.launches += 1
        crosses = leaves or (func is _aten.copy_.default and others) or (func is _aten._to_copy.default and not ours)
        if func is _aten.copy_.default:
            crosses = crosses and not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        elif not leaves:
            crosses = crosses and not kwargs.get("non_blocking", False)
        sized = func is not _aten.repeat_interleave.Tensor or kwargs.get("output_size") is not None
        by_mask = "index" in str(func) and any(
            isinstance(t, OnDevice) and t.dtype in (torch.bool, torch.uint8) for t in tree_flatten(args[1:2])[0]
        )
        if func in _READS or crosses or by_mask or not sized:
            self.counts.waits.append(str(func))


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnDevice) else value


@contextmanager
def pretended_device() -> Iterator[Counts]:
    """Let `DEVICE` exist, and count what it does."""
    counts = Counts()
    # So that `torch.tensor(..., device=)` is seen as the copy that it is.
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        # It has no generators of its own.
        with patch.object(torch, "Generator", _Generator), _Mode(counts):
            yield counts
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
