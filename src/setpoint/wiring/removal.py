"""Taking residual branches out of a model: stand-ins that answer zeros for the modules that made them.

The forward passes around the sum stay the user's own, and run on what the stand-ins answer. A stand-in is a plain
`torch.nn.Module` without parameters, whose forward is a call of torch or a `torch.fx` graph of a few: it is copied,
pickled, compiled and exported like any module, and needs nothing of this library. Code that looks at the module it
stands for, as `torch.nn.TransformerEncoderLayer` does, finds the attributes it had, and tensors without entries.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

_PLAIN = (type(None), bool, int, float, str, torch.dtype)


@dataclass(frozen=True)
class Zeros:
    """A tensor of zeros in the shape of another, or a single one.

    Attributes:
        sizes: () for a single zero without axes; where one axis has a size of its own: all sizes, the others as -1.
        dtype: where it is not that of the other tensor.
    """

    sizes: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class StandIn:
    """What takes a module's place.

    Attributes:
        path: of the module.
        source: the argument whose shape the answer has, by position or name.
        answer: as the module's, with `Zeros` for the tensors; None hands on the only argument as it is.
        alone: whether the source is the only argument.
    """

    path: str
    source: int | str
    answer: Any
    alone: bool


@dataclass(frozen=True, eq=False)
class Branch:
    """A residual branch: the f of x + f(x).

    Attributes:
        name: the path of a module.
        parameters: first names of its own parameters.
        last: those of the map that makes its result: with them zero it is zero, and in proportion to them where
            nothing but dropout and the like follows.
        modules: what takes the places of its modules when it is taken out.
    """

    name: str
    parameters: tuple[str, ...]
    last: tuple[str, ...]
    modules: tuple[StandIn, ...]


def take_out(model: nn.Module, branches: Sequence[Branch]) -> None:
    """Put stand-ins in the places of the branches' modules, in place."""
    _swap(model, {stand_in.path: stand_in for branch in branches for stand_in in branch.modules})


@contextmanager
def without(model: nn.Module, branches: Sequence[Branch]) -> Iterator[None]:
    """The model without some branches, for a while."""
    swapped = _swap(model, {stand_in.path: stand_in for branch in branches for stand_in in branch.modules})
    try:
        yield
    finally:
        for parent, name, module in swapped:
            parent._modules[name] = module


def _swap(model: nn.Module, stand_ins: Mapping[str, StandIn]) -> list[tuple[nn.Module, str, nn.Module]]:
    modules = {model.get_submodule(path): stand_in for path, stand_in in stand_ins.items()}
    places = [(p, name, m) for p in model.modules() for name, m in p._modules.items() if m in modules]
    built = {module: _built(stand_in, module) for module, stand_in in modules.items()}
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    for parent, name, module in places:
        if module is not None:
            parent._modules[name] = built[module]
            swapped.append((parent, name, module))
    return swapped


def _built(stand_in: StandIn, module: nn.Module) -> nn.Module:
    made = nn.Identity() if stand_in.answer is None else nn.Module()
    for name, value in vars(_remains(module)).items():
        setattr(made, name, value)
    made.training = module.training
    if stand_in.answer is not None:
        vars(made)["forward"] = _answering(stand_in)  # in its dictionary, as it is no submodule
        vars(made)["extra_repr"] = partial(str, f"zeros in place of {type(module).__name__}")
    return made


def _remains(module: nn.Module) -> SimpleNamespace:
    """What code may look for on a module: plain attributes, and what is left of its tensors and children."""
    usual = vars(nn.Module()).keys()
    found: dict[str, Any] = {
        name: value for name, value in vars(module).items() if name not in usual and isinstance(value, _PLAIN)
    }
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        found[name] = None if tensor is None else torch.empty(0, dtype=tensor.dtype, device="meta")
    for name, child in module._modules.items():
        found[name] = None if child is None else _remains(child)
    return SimpleNamespace(**found)


def _answering(stand_in: StandIn) -> Callable[..., Any]:
    if stand_in.alone and isinstance(stand_in.answer, Zeros) and not stand_in.answer.sizes:
        # Most are of this kind, for which one call does.
        wanted: dict[str, Any] = {} if stand_in.answer.dtype is None else {"dtype": stand_in.answer.dtype}
        if stand_in.answer.sizes is None:
            return partial(torch.zeros_like, **wanted)
        return partial(torch.Tensor.new_zeros, size=(), **wanted)
    graph = Graph()
    given, named = graph.placeholder("*args"), graph.placeholder("**kwargs")
    where = given if isinstance(stand_in.source, int) else named
    source = graph.call_function(operator.getitem, (where, stand_in.source))
    graph.output(_zeros(graph, source, stand_in.answer))
    return GraphModule({}, graph, class_name="Zeros")


def _zeros(graph: Graph, source: Node, answer: Any) -> Any:
    if isinstance(answer, tuple | list):
        return type(answer)(_zeros(graph, source, entry) for entry in answer)
    if isinstance(answer, dict):
        return {key: _zeros(graph, source, entry) for key, entry in answer.items()}
    if not isinstance(answer, Zeros):
        return answer
    wanted: dict[str, Any] = {} if answer.dtype is None else {"dtype": answer.dtype}
    if answer.sizes == ():
        return graph.call_method("new_zeros", (source, ()), wanted)
    if answer.sizes:
        axis = next(i for i, size in enumerate(answer.sizes) if size >= 0)
        source = graph.call_method("expand", (graph.call_method("narrow", (source, axis, 0, 1)), *answer.sizes))
    return graph.call_function(torch.zeros_like, (source,), wanted)
