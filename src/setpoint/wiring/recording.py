"""How modules are called and what they answer; stand-ins that answer alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from setpoint.wiring.stand_ins import StandIn, Zeros

# What stand-ins answer: a single zero, zeros in the shape of what they are given, or in the shape of their modules'
# answers. Each costs more than the one before, and runs through more code.
Shape = Literal["single", "given", "own"]


@dataclass(frozen=True)
class Called:
    """How a module was called, and what it answered."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    answer: Any


@contextmanager
def recorded(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Called]]:
    """How modules were called last, by their paths."""
    calls: dict[str, Called] = {}

    def record(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> None:
            calls[path] = Called(args, kwargs, answer)

        return hook

    handles = [model.get_submodule(p).register_forward_hook(record(p), with_kwargs=True) for p in paths]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def stand_in_for(path: str, calls: Mapping[str, Called], shape: Shape, handed: bool) -> StandIn:
    """What answers like a module as it was called, with zeros.

    Args:
        path: of the module.
        calls: as recorded.
        shape: of the zeros.
        handed: whether nothing but other stand-ins takes what it answers.

    Raises:
        ValueError: if the module was not called, or does not make tensors from tensors.
    """
    called = calls.get(path)
    if called is None:
        raise ValueError(f"{path!r} is not called in evaluation mode")
    given: dict[int | str, Any] = dict(enumerate(called.args))
    given.update(called.kwargs)
    tensors = {key: value for key, value in given.items() if isinstance(value, Tensor) and value.is_floating_point()}
    results = [r for r in pytree.tree_leaves(called.answer) if isinstance(r, Tensor)]
    if not tensors or not results:
        raise ValueError(f"{path!r} does not make tensors from tensors")
    alone = len(given) == len(called.args) == 1
    if handed and alone and isinstance(called.answer, Tensor) and shape != "own":
        return StandIn(path, 0, None, alone)
    source = next((key for key, value in tensors.items() if value.shape == results[0].shape), next(iter(tensors)))
    return StandIn(path, source, _described(path, called.answer, tensors[source], shape), alone)


def _described(path: str, answer: Any, source: Tensor, shape: Shape) -> Any:
    if isinstance(answer, Tensor):
        dtype = None if answer.dtype == source.dtype else answer.dtype
        if shape == "single":
            return Zeros((), dtype)
        apart = [i for i, (a, b) in enumerate(zip(answer.shape, source.shape)) if a != b]
        if shape == "given" or answer.ndim != source.ndim or len(apart) != 1:
            return Zeros(dtype=dtype)
        return Zeros(tuple(size if i in apart else -1 for i, size in enumerate(answer.shape)), dtype)
    if type(answer) in (tuple, list):
        return type(answer)(_described(path, entry, source, shape) for entry in answer)
    if type(answer) is dict:
        return {key: _described(path, entry, source, shape) for key, entry in answer.items()}
    if answer is None or type(answer) in (bool, int):
        return answer
    raise ValueError(f"{path!r} answers with a {type(answer).__name__}")
