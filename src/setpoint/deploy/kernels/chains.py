"""Sparse layers whose outputs go to sparse layers only, and need not be transposed in between."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from setpoint.deploy.kernels.matrices import CompressedMatrix
from setpoint.deploy.kernels.modules import SparseLayer, SparseLinear


class _Followed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the outputs of layers through operations on single entries, to wherever they go."""

    def __init__(self, layers: Iterable[SparseLayer]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers = list(layers)
        self.arrived: set[SparseLayer] = set()
        self.strayed: set[SparseLayer] = set()
        self._inside = False
        # The tensors are held, as the ids of dead ones return.
        self._sources: dict[int, tuple[Tensor, frozenset[SparseLayer]]] = {}

    def sources(self, tree: Any) -> frozenset[SparseLayer]:
        """The layers that any of these tensors come from."""
        found = (self._sources.get(id(leaf)) for leaf in _pytree.tree_leaves(tree))
        return frozenset().union(*(entry[1] for entry in found if entry is not None))

    def __enter__(self) -> _Followed:
        for layer in self.layers:
            layer.forward = partial(self._call, layer)  # type: ignore[method-assign]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for layer in self.layers:
            del layer.forward

    def _call(self, layer: SparseLayer, input: Tensor) -> Tensor:
        self.arrived |= self.sources(input)
        self._inside = True
        try:
            out: Tensor = type(layer).forward(layer, input)
        finally:
            self._inside = False
        self._sources[id(out)] = out, frozenset([layer])
        return out

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._inside or not (sources := self.sources((args, kwargs))):
            return out
        if torch.Tag.pointwise not in func.tags:
            self.strayed |= sources
            return out
        for leaf in _pytree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._sources[id(leaf)] = leaf, sources
        return out


def chained(model: nn.Module, run: Callable[[nn.Module], Any]) -> set[SparseLayer]:
    """The layers on compressed rows whose outputs go to other such layers and nowhere else.

    In between there may be operations on single entries, such as activation functions and sums, to which the order of
    the entries in memory is all the same.

    Args:
        model: with sparse layers.
        run: a forward pass of it on the example.
    """
    layers = [m for m in model.modules() if type(m) is SparseLinear and isinstance(m.matrix, CompressedMatrix)]
    with _Followed(layers) as followed:
        outputs = run(model)
        followed.strayed |= followed.sources(outputs)
    return followed.arrived - followed.strayed


def left_transposed(layer: SparseLayer) -> SparseLayer:
    """The layer, sharing its tensors, with its output as the product leaves it."""
    twin = copy.copy(layer)
    twin._modules = {**layer._modules, "matrix": copy.copy(layer.matrix)}
    twin.matrix.transposed = True
    return twin
