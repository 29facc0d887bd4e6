"""Copies of models on the meta device: sizes without values."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree


def on_meta(model: nn.Module, fake: FakeTensorMode | None = None) -> nn.Module:
    """A copy of a model whose parameters and buffers are on the meta device; nothing of their size is copied.

    Shared ones stay shared, as they do not where a model is moved there.

    Args:
        model: not changed.
        fake: has them be fake tensors, which code may ask for in order not to look at values that are not there.
    """

    def moved(tensor: Tensor) -> Tensor:
        meta = tensor.detach().to("meta")
        return meta if fake is None else fake.from_tensor(meta)

    twins: dict[int, Any] = {id(p): nn.Parameter(moved(p), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, twins | {id(b): moved(b) for b in model.buffers()})


@contextmanager
def without_values(model: nn.Module, inputs: Any) -> Iterator[tuple[nn.Module, Any]]:
    """A copy of a model and its inputs as fake tensors on the meta device, where all that is made is put there too.

    Plain meta tensors would do, but models that look at values leave that to be when they meet fake ones.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    placed = _pytree.tree_map_only(Tensor, lambda t: fake.from_tensor(t.detach().to("meta")), inputs)
    twin = on_meta(model, fake)
    with fake, torch.device("meta"):
        yield twin, placed
