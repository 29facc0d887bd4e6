"""A small copy of an optimizer, wrappers and all, that can be tried without touching the one that is copied."""

from __future__ import annotations

import enum
import logging
import random
import sys
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, type, enum.Enum, torch.dtype, torch.device, torch.layout,
    torch.memory_format, BuiltinFunctionType, ModuleType, logging.Logger,
)  # fmt: skip
# Objects and entries of tensors that a copy may have: it is to be made in no time.
_OBJECTS, _ENTRIES = 20_000, 200_000
# Of how many parameters there are stand-ins, and how large these may be: 8-bit states begin at 4096 entries.
_SAMPLES, _LARGEST = 8, 8192


class NotCopiedError(Exception):
    """What an optimizer holds cannot be copied, or not without a part of the model."""


def copy_optimizer(holder: Any, stand_ins: Mapping[Tensor, Tensor], *, carry_state: bool) -> Any:
    """Copy an optimizer or a wrapper of one with everything that it holds, for other parameters.

    The copy has neither hooks nor functions that were hung on the instance, such as those of learning-rate schedulers.

    Args:
        holder: what to copy.
        stand_ins: by parameter, what takes its place. The others go, and so do groups of which none is left.
        carry_state: copy the state of these parameters as well; otherwise the copy begins with none.

    Raises:
        NotCopiedError: if it holds a part of the model, large tensors, or objects that are not made of plain values.
    """
    copies = _Copies(stand_ins, carry_state)
    return copies.of(holder)


class _Copies:
    def __init__(self, stand_ins: Mapping[Tensor, Tensor], carry_state: bool) -> None:
        self._stand_ins, self._carry = stand_ins, carry_state
        self._memo: dict[int, Any] = {}
        self._alive: list[Any] = []  # what has an id in the memo
        self._entries = 0

    def of(self, value: Any) -> Any:
        if isinstance(value, _PLAIN):
            return value
        if id(value) in self._memo:
            return self._memo[id(value)]
        if len(self._alive) > _OBJECTS:
            raise NotCopiedError("it holds too many objects")
        self._alive.append(value)
        return self._new(value)

    def _keep(self, value: Any, copied: Any) -> Any:
        self._memo[id(value)] = copied
        return copied

    def _new(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._keep(value, self._tensor(value))
        if isinstance(value, torch.Generator):
            return self._keep(value, torch.Generator(value.device).set_state(value.get_state()))
        if isinstance(value, Mapping):
            return self._mapping(value)
        if isinstance(value, (list, deque, set)):
            copied = self._keep(value, type(value)())
            add = copied.add if isinstance(copied, set) else copied.append
            for item in value:
                add(self.of(item))
            return copied
        if isinstance(value, tuple):
            items = [self.of(item) for item in value]
            return self._keep(value, type(value)(*items) if hasattr(value, "_fields") else tuple(items))
        if isinstance(value, MethodType):
            return self._keep(value, MethodType(value.__func__, self.of(value.__self__)))
        if isinstance(value, FunctionType):
            if value.__closure__ is not None:
                raise NotCopiedError(f"it holds the function {value.__qualname__}, which may reach anything")
            return value
        return self._object(value)

    def _tensor(self, value: Tensor) -> Tensor:
        self._entries += value.numel()
        if self._entries > _ENTRIES:
            raise NotCopiedError("it holds large tensors")
        return value.detach().clone().requires_grad_(value.requires_grad)

    def _mapping(self, value: Mapping[Any, Any]) -> Any:
        if not isinstance(value, dict):
            raise NotCopiedError(f"it holds a {type(value).__name__}")
        empty = defaultdict(value.default_factory) if isinstance(value, defaultdict) else type(value)()
        copied = self._keep(value, empty)
        for key, item in value.items():
            copied[self.of(key)] = self.of(item)
        return copied

    def _object(self, value: Any) -> Any:
        model = isinstance(value, nn.Module) and any(id(p) in self._memo for p in value.parameters())
        if model or not hasattr(value, "__dict__"):
            raise NotCopiedError(f"it holds a {type(value).__name__}")
        copied = self._keep(value, object.__new__(type(value)))
        if isinstance(value, Optimizer) or hasattr(value, "param_groups"):
            self._prepare_groups(value)
        for name, item in vars(value).items():
            if name.endswith("_hooks"):
                vars(copied)[name] = OrderedDict()
            elif not (callable(item) and hasattr(type(value), name)):
                vars(copied)[name] = self.of(item)
        return copied

    def _prepare_groups(self, holder: Any) -> None:
        """Copy groups and state of the parameters that have stand-ins, and of no others."""
        groups, state = holder.param_groups, getattr(holder, "state", {})
        for group in groups:
            for parameter in group["params"]:
                self._alive.append(parameter)
                # The others may be referred to in other places.
                other = parameter.detach().new_zeros((1,) * parameter.ndim).requires_grad_()
                self._keep(parameter, self._stand_ins.get(parameter, other))
        if id(groups) not in self._memo:
            self._alive.append(groups)
            self._keep(groups, [])
            for group in groups:
                copied = self._group(group)
                if copied["params"]:
                    self._memo[id(groups)].append(copied)
        if isinstance(state, dict) and id(state) not in self._memo:
            self._alive.append(state)
            copied_state = self._keep(
                state, defaultdict(state.default_factory) if isinstance(state, defaultdict) else type(state)()
            )
            for parameter, stand_in in self._stand_ins.items() if self._carry else ():
                if parameter in state:
                    copied_state[stand_in] = self.of(state[parameter])

    def _group(self, group: dict[str, Any]) -> dict[str, Any]:
        self._alive += [group, group["params"]]
        copied: dict[str, Any] = self._keep(group, {})
        for key, value in group.items():
            if key == "params":
                copied[key] = self._keep(value, [self._stand_ins[p] for p in value if p in self._stand_ins])
            else:
                copied[key] = self.of(value)
        return copied


def samples(site: Optimizer, *, least: bool) -> list[Tensor]:
    """The largest parameter, or the smallest, of each number of dimensions and combination of options in words."""
    found: dict[tuple[Any, ...], Tensor] = {}
    for group in site.param_groups:
        options = tuple((k, v) for k, v in group.items() if isinstance(v, (bool, str, type(None))))
        for p in group["params"]:
            key = (options, p.ndim, p.dtype, p.device)
            if p.requires_grad and p.numel() > 1 and p.device.type != "meta":
                found[key] = (min if least else max)(found.get(key, p), p, key=Tensor.numel)
    return sorted(found.values(), key=lambda p: -p.ndim)[:_SAMPLES]


def stand_in(parameter: Tensor, *, exact: bool) -> Tensor:
    """A parameter in the place of a large one; no two of its dimensions are equal, to tell its state from factors."""
    shape = list(parameter.shape)
    if exact:
        return torch.nn.Parameter(parameter.detach().clone())
    while torch.Size(shape).numel() > _LARGEST and max(shape) > 1:
        widest = shape.index(max(shape))
        shape[widest] = (shape[widest] + 1) // 2
    for i, size in enumerate(shape):
        while size in shape[:i]:
            size *= 2
        shape[i] = size
    return torch.nn.Parameter(torch.empty(shape, dtype=parameter.dtype, device=parameter.device))


def nested(holder: Any) -> list[Any]:
    """An optimizer or a wrapper of one, and all optimizers inside, from the outside in."""
    found: list[Any] = [holder]
    for inner in found:
        found += [o for o in held(inner) if not any(o is other for other in found)]
    return found


def held(holder: Any) -> list[Optimizer]:
    """The optimizers that an object holds as attributes, alone or in lists."""
    values: list[Any] = []
    for value in getattr(holder, "__dict__", {}).values():
        values += value if isinstance(value, (list, tuple)) else [value]
    return [v for v in values if isinstance(v, Optimizer)]


def let_move(holder: Any, least: float) -> None:
    """Raise learning rates that are too small for a step to be seen, as at the start of a warm-up."""
    for group in getattr(holder, "param_groups", ()):
        if "lr" in group and float(group["lr"]) < least:
            group["lr"] = torch.full_like(group["lr"], least) if isinstance(group["lr"], Tensor) else least


@contextmanager
def quietly(devices: set[torch.device]) -> Iterator[None]:
    """Leave random numbers as they were, say nothing, and compile nothing."""
    state = random.getstate()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([d for d in devices if d.type == "cuda"]))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.no_grad())
        try:
            yield
        finally:
            random.setstate(state)
