"""Batch norms of a run: which of them follows a layer, and statistics that start anew when the network changes."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary


class NormWatch:
    """Sees, in the forward passes of training, which batch norm takes which layer's output.

    It is the output itself that is recognised, as the layer left it, so nothing is guessed from names or order. Under
    `torch.compile`, where a module's output is no tensor, nothing is seen. The watch ends with this object.

    Args:
        model: its batch norms with scale and shift that are trained are watched.
        producers: modules whose outputs to look for, by a number; only Linear and convolutions are watched.
    """

    def __init__(self, model: nn.Module, producers: Mapping[int, nn.Module]) -> None:
        self._producers: dict[nn.Module, int] = {
            m: i for i, m in producers.items() if isinstance(m, (nn.Linear, _ConvNd))
        }
        self._norms = {m for m in model.modules() if isinstance(m, _BatchNorm) and m.affine and m.weight.requires_grad}
        self._outputs = WeakIdKeyDictionary()  # of tensors: whose they are, and in which version
        self._takers: dict[int, set[nn.Module]] = {}
        self._givers: dict[nn.Module, set[int | None]] = {}
        handles: list[RemovableHandle] = []
        if self._norms:
            # The hooks do not hold the watch: on a model whose run was refused or forgotten, none must stay.
            produced, taken = weakref.WeakMethod(self._produced), weakref.WeakMethod(self._taken)
            handles += [m.register_forward_hook(lambda *call: _tell(produced, *call)) for m in self._producers]
            handles += [m.register_forward_pre_hook(lambda *call: _tell(taken, *call)) for m in self._norms]
        self._end = weakref.finalize(self, _remove, handles)
        self._end.atexit = False

    def found(self) -> dict[int, nn.Module]:
        """The norm behind each producer, by its number, where each has the other alone."""
        pairs = {i: next(iter(norms)) for i, norms in self._takers.items() if len(norms) == 1}
        return {i: norm for i, norm in pairs.items() if self._givers[norm] == {i}}

    def remove(self) -> None:
        """Stop watching."""
        self._end()
        self._outputs.clear()

    def _produced(self, module: nn.Module, _: Any, output: Any) -> None:
        index = self._producers.get(module)  # None for the copies that were made of a model
        # A norm counts the second axis as channels, which is where a convolution has its outputs in any case.
        whole = isinstance(output, Tensor) and not output.is_inference()
        if index is not None and whole and (isinstance(module, _ConvNd) or output.ndim == 2):
            self._outputs[output] = index, output._version

    def _taken(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        if norm not in self._norms or not args or not isinstance(args[0], Tensor) or args[0].is_inference():
            return
        # Operations in place keep the tensor and raise its version.
        index, version = self._outputs.get(args[0], (None, 0))  # type: ignore[no-untyped-call]
        index = index if version == args[0]._version else None
        self._givers.setdefault(norm, set()).add(index)
        if index is not None:
            self._takers.setdefault(index, set()).add(norm)


def _tell(watching: weakref.WeakMethod[Any], *call: Any) -> None:
    if torch.compiler.is_compiling():
        return
    if (hook := watching()) is not None:
        hook(*call)


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


class NormStatistics:
    """Makes the running statistics of batch norms forget what they saw before a moment.

    The first batch after `restart` replaces them, and from then on the norm's own moving average goes on. The old
    values stand until that batch. (A plain average over the first batches would be less noisy for a few steps, but
    takes a momentum of None, which `torch.compile` refuses in a full graph.)

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
            norm.momentum = 1.0

    def stop(self) -> None:
        """Leave the norms with the moving average that they had."""
        for norm, momentum in self._norms:
            if norm.momentum != momentum:
                norm.momentum = momentum

    def stop_in(self, model: nn.Module, copied: nn.Module) -> None:
        """The same for the norms of a copy of the model."""
        copies: dict[nn.Module, Any] = dict(zip(model.modules(), copied.modules()))
        for norm, momentum in self._norms:
            copies[norm].momentum = momentum
