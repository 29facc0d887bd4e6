"""Modules that answer zeros in place of others.

A stand-in is a plain `torch.nn.Module` without parameters, whose forward is a call of torch or a `torch.fx` graph of a
few: it is copied, pickled, compiled and exported like any module, and needs nothing of this library. Code that looks at
the module it stands for, as `torch.nn.TransformerEncoderLayer` does, finds the attributes it had, and in the places of
tensors what is known of them without their entries.

What it answers is told by a plain attribute, so that whoever writes a model down need not write its functions.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

# Under this name a stand-in says what it answers; its functions, under these, follow from that.
TOLD = "setpoint_stand_in"
FUNCTIONS = frozenset({"forward", "extra_repr"})

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

    def built(self, module: nn.Module) -> nn.Module:
        """What takes the place of a module, in the mode that this one is in."""
        made = nn.Identity() if self.answer is None else nn.Module()
        vars(made).update(vars(_remains(module)), training=module.training)
        if self.answer is not None:
            told = {"source": self.source, "answer": _plain(self.answer), "alone": self.alone}
            vars(made)[TOLD] = SimpleNamespace(**told, module=type(module).__name__)
            revive(made)
        return made


def revive(module: nn.Module) -> None:
    """Give a stand-in its functions; other modules are left as they are.

    Raises:
        ValueError: for what no stand-in answers.
    """
    told = vars(module).get(TOLD)
    if told is None:
        return
    # In its dictionary: a graph is no submodule of it.
    vars(module)["forward"] = _answering(told.source, told.answer, bool(told.alone))
    vars(module)["extra_repr"] = partial(str, f"zeros in place of {told.module}")


def _plain(answer: Any) -> Any:
    """An answer in values that need nothing of this library."""
    if isinstance(answer, tuple | list):
        return type(answer)(_plain(entry) for entry in answer)
    if isinstance(answer, dict):
        return {key: _plain(entry) for key, entry in answer.items()}
    return SimpleNamespace(**vars(answer)) if isinstance(answer, Zeros) else answer


def _remains(module: nn.Module) -> SimpleNamespace:
    """What code may look for on a module: plain attributes, and what is left of its tensors and children."""
    usual = vars(nn.Module()).keys()
    found: dict[str, Any] = {
        name: value for name, value in vars(module).items() if name not in usual and isinstance(value, _PLAIN)
    }
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        found[name] = None if tensor is None else _trace(tensor)
    for name, child in module._modules.items():
        found[name] = None if child is None else _remains(child)
    return SimpleNamespace(**found)


def _trace(tensor: Tensor) -> SimpleNamespace:
    """Of a tensor that is gone: one without entries, on a device that has none."""
    return SimpleNamespace(
        dtype=tensor.dtype, device=torch.device("meta"), shape=torch.Size([0]), requires_grad=False, is_meta=True
    )


def _answering(source: int | str, answer: Any, alone: bool) -> Callable[..., Any]:
    if alone and isinstance(answer, SimpleNamespace) and not answer.sizes:
        # Most are of this kind, for which one call does.
        if answer.sizes is None:
            return partial(torch.zeros_like, **_wanted(answer))
        return partial(torch.Tensor.new_zeros, size=(), **_wanted(answer))
    graph = Graph()
    given, named = graph.placeholder("*args"), graph.placeholder("**kwargs")
    where = given if isinstance(source, int) else named
    found = graph.call_function(operator.getitem, (where, _checked(source)))
    graph.output(_zeros(graph, found, answer))
    return GraphModule({}, graph, class_name="Zeros")


def _zeros(graph: Graph, source: Node, answer: Any) -> Any:
    if isinstance(answer, tuple | list):
        return type(answer)(_zeros(graph, source, entry) for entry in answer)
    if isinstance(answer, dict):
        return {_checked(key): _zeros(graph, source, entry) for key, entry in answer.items()}
    if not isinstance(answer, SimpleNamespace):
        return _checked(answer)
    if answer.sizes == ():
        return graph.call_method("new_zeros", (source, ()), _wanted(answer))
    if answer.sizes:
        sizes = [int(size) for size in answer.sizes]
        axis = next(i for i, size in enumerate(sizes) if size >= 0)
        source = graph.call_method("expand", (graph.call_method("narrow", (source, axis, 0, 1)), *sizes))
    return graph.call_function(torch.zeros_like, (source,), _wanted(answer))


def _wanted(zeros: SimpleNamespace) -> dict[str, Any]:
    if zeros.dtype is None:
        return {}
    if not isinstance(zeros.dtype, torch.dtype):
        raise ValueError(f"{zeros.dtype!r} is no dtype")
    return {"dtype": zeros.dtype}


def _checked(value: Any) -> Any:
    """Values that mean nothing but themselves in the text of a graph, which what is read from a file may come into."""
    if value is None or type(value) in (bool, int) or (type(value) is str and value.isidentifier()):
        return value
    raise ValueError(f"a stand-in answers with tensors, integers, truth values and None, not with {value!r}")
