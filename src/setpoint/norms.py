"""Batch norms of a run: which of them follows a layer, and statistics that start anew when the network changes."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle


class NormWatch:
    """Sees, in the forward passes of training, which batch norm takes which layer's output.

    It is the output itself that is recognised, so nothing is guessed from names or order. Under `torch.compile`, where
    a module's output is no tensor, nothing is seen.

    Args:
        model: its batch norms with scale and shift are watched.
        producers: modules whose outputs to look for, by a number.
    """

    def __init__(self, model: nn.Module, producers: Mapping[int, nn.Module]) -> None:
        self._outputs: dict[int, weakref.ref[Tensor]] = {}
        self._takers: dict[int, set[nn.Module]] = {}
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.affine]
        self._handles: list[RemovableHandle] = []
        if norms:
            self._handles += [m.register_forward_hook(self._produced(i)) for i, m in producers.items()]
            self._handles += [norm.register_forward_pre_hook(self._taken) for norm in norms]

    def found(self) -> dict[int, nn.Module]:
        """The norm behind each producer, by its number, where there is exactly one."""
        return {i: next(iter(norms)) for i, norms in self._takers.items() if len(norms) == 1}

    def remove(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._outputs.clear()

    def _produced(self, index: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if not torch.compiler.is_compiling() and isinstance(output, Tensor):
                self._outputs[index] = weakref.ref(output)

        return hook

    def _taken(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling():
            return
        for index, output in self._outputs.items():
            if args and output() is args[0]:
                self._takers.setdefault(index, set()).add(norm)


class NormStatistics:
    """Makes the running statistics of batch norms forget what they saw before a moment.

    From `restart` on they are the plain average of the batches seen since, until there are so many that the norm's own
    moving average forgets as fast. The old values stand until the first batch.

    Args:
        model: all its batch norms with running statistics.
    """

    def __init__(self, model: nn.Module) -> None:
        self._norms = [
            (m, m.momentum)
            for m in model.modules()
            if isinstance(m, _BatchNorm) and m.track_running_stats and m.momentum
        ]

    def restart(self) -> None:
        """Forget what was seen."""
        for norm, _ in self._norms:
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.zero_()
        self.after(0)

    def after(self, steps: int) -> None:
        """Choose the average for the next batch, so many steps after the restart."""
        for norm, momentum in self._norms:
            wanted = None if (steps + 1) * momentum < 1.0 else momentum
            if norm.momentum != wanted:
                norm.momentum = wanted
