"""Exporting a model while watching which sizes its forward pass reads, computes and passes on."""

from __future__ import annotations

import io
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from setpoint.wiring.leaves import FUNCTIONS
from setpoint.wiring.sizes import AttributeOf, Expression, Size, SizeOf, is_size, plain_number

# Keys of what is noted on the graph's nodes: the expressions of the integers among their arguments, in order; the name
# under which sizes refer to them; and the class of the leaf whose function made them.
SIZES = "setpoint_sizes"
NAME = "setpoint_name"
WITHIN = "setpoint_within"

_PREFIX = "model"


class Watched(nn.Module):
    """Runs a model with its sizes watched."""

    def __init__(self, model: nn.Module, log: list[Expression]) -> None:
        super().__init__()
        self.training = model.training
        self._log = log
        self.add_module(_PREFIX, model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model answers."""
        with _Watch(self._log):
            return self._modules[_PREFIX](*args, **kwargs)  # type: ignore[misc]


def export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[ExportedProgram, list[Expression]]:
    """Export a model, with the sizes that its nodes take noted on them.

    Returns:
        The program, whose names have the prefix that `plain` removes, and the expressions of sizes that were used as
        numbers.
    """
    log: list[Expression] = []
    # Where it fails, torch prints the part of the graph that it has; the error says what of it is of use.
    quiet = redirect_stderr(io.StringIO())
    with _attributes_watched(model, log), _norms_at_rest(model), warnings.catch_warnings(), quiet:
        warnings.filterwarnings("ignore", message=".*were assigned during export")  # recurrent layers; export undoes it
        program = torch.export.export(Watched(model, log), args, kwargs, strict=False)
    return program, log


def plain(name: str) -> str:
    """A name in the exported program as the model has it."""
    return name.removeprefix(_PREFIX).removeprefix(".")


_COUNTING = (torch.Tensor.numel, torch.Tensor.nelement, torch.numel)


class _Watch(TorchFunctionMode):
    def __init__(self, log: list[Expression]) -> None:
        super().__init__()
        self._log = log

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        mode = get_proxy_mode()
        if mode is None:
            return func(*args, **kwargs)
        if getattr(func, "__self__", None) is torch.Tensor.shape:
            return self._shape(args[0], mode)
        if func is torch.Tensor.size:
            shape = self._shape(args[0], mode)
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return shape if dim is None else shape[dim]
        if func in _COUNTING:
            return prod(self._shape(args[0], mode))
        if func is torch.Tensor.__len__:
            return int(self._shape(args[0], mode)[0])  # the interpreter takes nothing but a plain number
        numbers: list[int] = []
        plain_args = _stripped(args, numbers)
        named: list[int] = []
        plain_kwargs = _stripped(dict(kwargs), named)
        if func not in FUNCTIONS and not any(is_size(n) for n in (*numbers, *named)):
            return func(*args, **kwargs)
        last = next(iter(reversed(mode.tracer.graph.nodes)), None)
        result = func(*plain_args, **plain_kwargs)
        made = _made(mode.tracer.graph.nodes, last)
        for node in made if func in FUNCTIONS else ():
            node.meta[WITHIN] = FUNCTIONS[func]
        if func is torch.Tensor.__getitem__:
            self._note_slice(made, args[1], numbers)
        else:
            # Arguments by name need not come in the schema's order; told apart they are by their values only.
            self._note(made, numbers + named, ambiguous=len({plain_number(n) for n in named}) < len(named))
        return result

    def _shape(self, tensor: Tensor, mode: Any) -> torch.Size:
        shape = tensor.shape
        slot = get_proxy_slot(tensor, mode.tracer, None) if isinstance(tensor, Tensor) else None
        if slot is None:
            return shape
        node: Node = slot.proxy.node
        node.meta[NAME] = node.name
        sizes: list[Any] = [Size(s, SizeOf(node.name, i, s), self._log) for i, s in enumerate(shape)]
        return torch.Size(sizes)

    def _note(self, made: list[Node], numbers: list[int], ambiguous: bool) -> None:
        """Note the sizes of a call on the node it made, if that takes the same integers in the same order."""
        if len(made) == 1 and not ambiguous:
            taken = list(integers((made[0].args, made[0].kwargs)))
            if taken == [plain_number(n) for n in numbers[: len(taken)]]:
                made[0].meta[SIZES] = [n.expression if is_size(n) else None for n in numbers[: len(taken)]]
                return
        self._log.extend(n.expression for n in numbers if is_size(n))

    def _note_slice(self, made: list[Node], index: Any, numbers: list[int]) -> None:
        """Note the ends of a slice on the node that takes it, if there is one of each."""
        entries = index if isinstance(index, tuple) else (index,)
        slices = [e for e in entries if isinstance(e, slice) and (plain_number(e.start) or e.stop is not None)]
        nodes = [n for n in made if n.target is torch.ops.aten.slice.Tensor]
        if len(slices) == len(nodes) == 1 and not any(is_size(e) for e in entries):
            ends = (None, slices[0].start, slices[0].stop)
            taken = list(integers(nodes[0].args))
            nodes[0].meta[SIZES] = [
                end.expression if is_size(end) and end.plain == number else None for end, number in zip(ends, taken)
            ]
        else:
            self._log.extend(n.expression for n in numbers if is_size(n))


def _made(nodes: Any, last: Node | None) -> list[Node]:
    """The calls that came into a graph after a node."""
    made: list[Node] = []
    for node in reversed(nodes):
        if node is last:
            break
        if node.op == "call_function" and node.target is not operator.getitem:
            made.append(node)
    return made


def integers(value: Any) -> Iterator[int]:
    """The integers in nested arguments, in order."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, list | tuple):
        for v in value:
            yield from integers(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from integers(v)


def _stripped(value: Any, numbers: list[int]) -> Any:
    """The same arguments with plain integers; all integers go to the list, in order."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        numbers.append(value)
        return plain_number(value)
    if isinstance(value, slice):
        return slice(*(_stripped(v, numbers) for v in (value.start, value.stop, value.step)))
    if type(value) in (list, tuple, torch.Size):
        return type(value)([_stripped(v, numbers) for v in value])
    if type(value) is dict:
        return {k: _stripped(v, numbers) for k, v in value.items()}
    return value


@contextmanager
def _norms_at_rest(model: nn.Module) -> Iterator[None]:
    """Have batch norms use their running statistics: the axes are the same, and a single example will do."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True


@contextmanager
def _attributes_watched(model: nn.Module, log: list[Expression]) -> Iterator[None]:
    """Have the modules' integer attributes be sizes that remember their names; as before on leaving."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    for path, module in model.named_modules():
        attributes = vars(module)
        for name, value in list(attributes.items()):
            watched = _watched(path, name, value, log)
            if watched is not None:
                before.append((attributes, name, value))
                attributes[name] = watched
    try:
        yield
    finally:
        for attributes, name, value in before:
            attributes[name] = value
        for module in model.modules():
            for name, value in list(vars(module).items()):
                if is_size(value) or isinstance(value, tuple | list):
                    numbers: list[int] = []
                    stripped = _stripped(value, numbers)
                    if any(is_size(n) for n in numbers):
                        vars(module)[name] = stripped


def _watched(path: str, name: str, value: Any, log: list[Expression]) -> Any:
    if name.startswith("_"):
        return None
    if type(value) is int:
        return Size(value, AttributeOf(path, name, None, value), log)
    if type(value) in (tuple, list, torch.Size) and value and all(type(v) is int for v in value):
        return type(value)([Size(v, AttributeOf(path, name, i, v), log) for i, v in enumerate(value)])
    return None
