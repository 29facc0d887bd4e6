"""A part of an exported graph on its own."""

from __future__ import annotations

import logging
from collections.abc import Collection, Set
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from setpoint.wiring.flow import Flow

_logger = logging.getLogger(__name__)


class Subgraph:
    """Some values of a graph and the one that they are for.

    Args:
        model: whose parameters and buffers are taken.
        flow: of its graph.
        nodes: the values that are computed here; what comes in from others is made up.
        result: one of them.
    """

    def __init__(self, model: nn.Module, flow: Flow, nodes: Set[Node], result: Node) -> None:
        self._model, self._flow, self._nodes, self._result = model, flow, nodes, result

    def vanishes_without(self, parameters: Collection[str]) -> bool:
        """Whether the result is zero where these parameters are, with random numbers coming in."""
        devices = sorted({p.get_device() for p in self._model.parameters() if p.is_cuda})
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=devices):
                return bool((self._computed(parameters) == 0).all())
        except Exception as error:  # whatever a graph's operators raise on values that do not go together
            _logger.debug("the graph up to %s cannot be run on its own", self._result, exc_info=error)
            return False

    def _computed(self, zero: Collection[str]) -> Tensor:
        values: dict[Node, Any] = {}

        def value(node: Node) -> Any:
            node = self._flow.told_of(node)
            if node not in values:
                values[node] = self._brought_in(node, zero)
            return values[node]

        for node in self._flow.calls(self._nodes):
            args, kwargs = map_arg((node.args, node.kwargs), value)
            assert callable(node.target)
            with self._mode(node):
                values[node] = node.target(*args, **kwargs)
        found: Tensor = values[self._result]
        return found

    def _mode(self, node: Node) -> AbstractContextManager[Any]:
        if node not in self._flow.autocast:
            return nullcontext()
        device, dtype, on = self._flow.autocast[node]
        return torch.autocast(device, dtype, on)

    def _brought_in(self, node: Node, zero: Collection[str]) -> Any:
        name = self._flow.parameters.get(node)
        if name is not None:
            parameter = self._model.get_parameter(name).detach()
            return torch.zeros_like(parameter) if name in zero else parameter
        if node in self._flow.buffers:
            return self._model.get_buffer(self._flow.buffers[node]).clone()  # norms in training mode write to them
        if node in self._flow.constants:
            held = self._flow.constants[node]
            return held.clone() if isinstance(held, Tensor) else held
        return pytree.tree_map_only(Tensor, _made_up, node.meta["val"])


def _made_up(like: Tensor) -> Tensor:
    """A tensor like a fake one: random numbers, or ones where they are truth values, zeros where they are positions."""
    if like.is_floating_point() or like.is_complex():
        return torch.randn(like.shape, dtype=like.dtype, device=like.device)
    return torch.full(like.shape, like.dtype == torch.bool, dtype=like.dtype, device=like.device)
