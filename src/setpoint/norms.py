"""Batch norms of a run: which of them follows a layer, and statistics that start anew when the network changes."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils.weak import WeakIdKeyDictionary

from setpoint.overlay import Overlay, hang, obstacle, take_off


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
        self._norms = {
            m
            for m in model.modules()
            if isinstance(m, _BatchNorm) and m.affine and m.weight.requires_grad and obstacle(m) is None
        }
        self._outputs = WeakIdKeyDictionary()  # of tensors: whose they are, and in which version
        self._takers: dict[int, set[nn.Module]] = {}
        self._givers: dict[nn.Module, set[int | None]] = {}
        watcher, watched = _Watcher(weakref.ref(self)), (*self._producers, *self._norms) if self._norms else ()
        for module in watched:
            hang(module, watcher)
        # What hangs there does not hold the watch: on a model whose run was refused or forgotten, none must stay.
        self._end = weakref.finalize(self, _remove, watcher, watched)
        self._end.atexit = False

    def found(self) -> dict[int, nn.Module]:
        """The norm behind each producer, by its number, where each has the other alone."""
        pairs = {i: next(iter(norms)) for i, norms in self._takers.items() if len(norms) == 1}
        return {i: norm for i, norm in pairs.items() if self._givers[norm] == {i}}

    def remove(self) -> None:
        """Stop watching."""
        self._end()
        self._outputs.clear()

    def produced(self, module: nn.Module, output: Any) -> None:
        """Note the output of a module, if it is a producer."""
        index = self._producers.get(module)
        # A norm counts the second axis as channels, which is where a convolution has its outputs in any case.
        whole = isinstance(output, Tensor) and not output.is_inference()
        if index is not None and whole and (isinstance(module, _ConvNd) or output.ndim == 2):
            self._outputs[output] = index, output._version

    def taken(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        """Note what a module was called with, if it is a norm."""
        if norm not in self._norms or not args or not isinstance(args[0], Tensor) or args[0].is_inference():
            return
        # Operations in place keep the tensor and raise its version.
        index, version = self._outputs.get(args[0], (None, 0))  # type: ignore[no-untyped-call]
        index = index if version == args[0]._version else None
        self._givers.setdefault(norm, set()).add(index)
        if index is not None:
            self._takers.setdefault(index, set()).add(norm)


class _Watcher(Overlay):
    """Tells a watch, while there is one, of a module's calls."""

    def __init__(self, watch: weakref.ref[NormWatch]) -> None:
        self._watch = watch

    def called(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if (watch := self._watch()) is not None:
            watch.taken(module, args)

    def answered(self, module: nn.Module, output: Any) -> None:
        if (watch := self._watch()) is not None:
            watch.produced(module, output)


def _remove(watcher: Overlay, watched: Iterable[nn.Module]) -> None:
    for module in watched:
        take_off(module, watcher)


class WholeMomentum(float):
    """A momentum of one, in place of a norm's own for a while. Copies and pickles of it are the norm's own."""

    own: float

    def __new__(cls, own: float) -> WholeMomentum:
        """A momentum of one that stands in for this one."""
        made = super().__new__(cls, 1.0)
        made.own = own
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> float:
        return self.own

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return float, (self.own,)


class NormStatistics:
    """Makes the running statistics of batch norms forget what they saw before a moment.

    The first batch after `restart` replaces them, and from then on the norm's own moving average goes on. The old
    values stand until that batch. (A plain average over the first batches would be less noisy for a few steps, but
    takes a momentum of None, which `torch.compile` refuses in a full graph.)

    Args:
        model: all its batch norms with running statistics.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._restarted: list[_BatchNorm] = []

    def restart(self) -> None:
        """Forget what was seen."""
        self.stop()
        norms = [m for m in self._model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self._restarted = [norm for norm in norms if norm.momentum]
        for norm in self._restarted:
            norm.momentum = WholeMomentum(norm.momentum or 0.0)

    def stop(self) -> None:
        """Leave the norms with the moving average that they had, or have been given since."""
        for norm in self._restarted:
            if isinstance(norm.momentum, WholeMomentum):
                norm.momentum = norm.momentum.own
        self._restarted = []
