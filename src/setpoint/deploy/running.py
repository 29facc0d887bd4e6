"""Running models side by side: in evaluation mode, on batches of any size, and how far their outputs are apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from setpoint.inputs import call_arguments


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models into evaluation mode, and each of their modules back into its own."""
    modes = {module: module.training for model in models for module in model.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors of nested containers, in order."""
    return [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


@torch.no_grad()
def outputs_of(model: nn.Module, example_inputs: Any) -> list[Tensor]:
    """The tensors that a model answers with, in evaluation mode."""
    args, kwargs = call_arguments(example_inputs)
    with evaluating(model):
        return tensors_in(model(*args, **kwargs))


def rebatch(example_inputs: Any, size: int) -> Any:
    """The same inputs as a batch of another size, along the first axis: repeated from the start, or cut."""
    return _pytree.tree_map_only(Tensor, lambda t: t[torch.arange(size) % len(t)] if t.dim() else t, example_inputs)


def difference(ones: Sequence[Tensor], others: Iterable[Tensor]) -> float:
    """The largest difference between outputs, relative to the largest entry in size of the output it is in.

    Infinite for outputs of another number, other shapes or other places of NaN. Of outputs that are no floats only the
    shapes are compared: one rounding may well change which entry is the largest.
    """
    found = list(others)
    if len(ones) != len(found):
        return math.inf
    return max((_difference(one, other.to(one.device)) for one, other in zip(ones, found)), default=0.0)


def _difference(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return math.inf
    if not one.is_floating_point() or torch.equal(one, other):
        return 0.0
    finite = one.isfinite()
    if not torch.equal(one[~finite].nan_to_num(), other[~finite].nan_to_num()) or not other[finite].isfinite().all():
        return math.inf
    sizes, apart = one[finite].abs().double(), (one - other)[finite].abs().double()
    return float(apart.max() / sizes.max().clamp(min=torch.finfo(torch.float32).tiny)) if len(sizes) else 0.0
