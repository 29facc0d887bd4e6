"""Which layers come first and last in a model, and which norm follows which layer: read off one forward pass.

Layers are told by what they do: a product of an activation with something that was made of parameters alone, or an
embedding's look-up. Names, shapes and the order of registration decide nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from setpoint.budget.watching import OperatorWatch, storage, watch_forward
from setpoint.inputs import running_on

_LOOK_UPS = (torch.ops.aten.embedding, torch.ops.aten._embedding_bag, torch.ops.aten._embedding_bag_forward_only)


@dataclass(frozen=True)
class Flow:
    """What passes through what.

    Attributes:
        first: parameters of layers that no other layer comes before, which read the model's input.
        last: parameters of layers that no other layer comes after, which make the model's output.
        norms: by a module's path, that of the batch norm that alone takes all of its output.
        readers: by parameter, a module other than its owners in whose forward it is read.
        shapes: of the tensors that the model answers with.
    """

    first: frozenset[str]
    last: frozenset[str]
    norms: Mapping[str, str]
    readers: Mapping[str, str]
    shapes: tuple[tuple[int, ...], ...]


def follow(model: nn.Module, example_inputs: Any) -> Flow:
    """Run a copy of a model and see what passes through what.

    Args:
        model: not changed.
        example_inputs: a tensor, or a tuple of arguments.

    Raises:
        ValueError: if the model cannot be run on them.
    """
    with running_on(example_inputs):
        watch, answer = watch_forward(model, example_inputs, _FlowWatch)
    outputs = [t for t in torch.utils._pytree.tree_leaves(answer) if isinstance(t, Tensor)]
    last = frozenset[int]().union(*(watch.before[storage(t)] for t in outputs)) - watch.followed
    norms = watch.norms({storage(t) for t in outputs})
    readers = {name: path for name, path in watch.readers.items() if path not in watch.owners[name]}
    names = frozenset[str]().union(*(watch.layers[i] for i in last))
    return Flow(frozenset(watch.first), names, norms, readers, shapes_of(answer))


def shapes_of(answer: Any) -> tuple[tuple[int, ...], ...]:
    """Of all tensors in what a model answers with."""
    return tuple(tuple(t.shape) for t in torch.utils._pytree.tree_leaves(answer) if isinstance(t, Tensor))


class _FlowWatch(OperatorWatch):
    """Follows tensors by their storages: views share one, and what is written in place joins what was there.

    Attributes:
        made_of: parameters of what was computed from parameters and buffers alone.
        before: the layers that a tensor passed through last.
        layers: the parameters of each.
        followed: layers whose outputs other layers read.
    """

    def __init__(self, twin: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        names = {storage(p): name for name, p in twin.named_parameters()}
        self.made_of: dict[int, frozenset[str]] = {storage(b): frozenset() for b in twin.buffers()}
        self.made_of |= {s: frozenset([name]) for s, name in names.items()}
        self.before: dict[int, frozenset[int]] = defaultdict(frozenset)
        self.layers: list[frozenset[str]] = []
        self.first: set[str] = set()
        self.followed: set[int] = set()
        self.calls: Counter[str] = Counter()
        self.readers: dict[str, str] = {}
        self.owners: dict[str, set[str]] = defaultdict(set)
        for alias, parameter in twin.named_parameters(remove_duplicate=False):
            self.owners[names[storage(parameter)]].add(alias.rpartition(".")[0])
        self._names = names
        self._modules = dict(twin.named_modules())
        self._path = [""]
        self._read_in: dict[int, list[str]] = defaultdict(list)
        self._made_by: dict[str, list[Tensor]] = defaultdict(list)
        # A storage that is freed may lend its address to another one.
        self._alive: list[Tensor] = []
        for path, module in self._modules.items():
            module.register_forward_pre_hook(self._enters(path))
            module.register_forward_hook(self._leaves(path))

    def _enters(self, path: str) -> Any:
        def enter(module: nn.Module, args: Any) -> None:
            self.calls[path] += 1
            self._path.append(path)

        return enter

    def _leaves(self, path: str) -> Any:
        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._path.pop()
            if isinstance(output, Tensor):
                self._alive.append(output)
                self._made_by[path].append(output)

        return leave

    def saw(self, func: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor], flops: int | None) -> None:
        """Join what comes before the operator's results."""
        self._alive += [*inputs, *outputs]
        read = {storage(t): t.numel() for t in inputs}
        for s in read:
            self._read_in[s].append(self._path[-1])
            if s in self._names and self._path[-1] not in self.owners[self._names[s]]:
                self.readers.setdefault(self._names[s], self._path[-1])
        weights = [s for s in read if self.made_of.get(s)]
        before = frozenset[int]().union(*(self.before[s] for s in read))
        results = {storage(t) for t in outputs}
        if read and all(s in self.made_of for s in read):
            together = frozenset[str]().union(*(self.made_of[s] for s in weights))
            self.made_of |= {s: together for s in results if s not in self._names}
            return
        if weights and (flops is not None or func._overloadpacket in _LOOK_UPS):
            # What is multiplied with, not the bias that is added.
            weight = max(weights, key=lambda s: read[s])
            before = self._layer(self.made_of[weight], before)
        for s in results:
            self.before[s] |= before
            if s not in self._names:
                self.made_of.pop(s, None)

    def _layer(self, names: frozenset[str], before: frozenset[int]) -> frozenset[int]:
        self.followed |= before
        if not before:
            self.first |= names
        self.layers.append(names)
        return frozenset([len(self.layers) - 1])

    def norms(self, outputs: set[int]) -> dict[str, str]:
        """By path, the batch norm that takes all that a module makes, which nothing else reads."""
        found: dict[str, str] = {}
        for path, made in self._made_by.items():
            if len(made) != 1 or storage(made[0]) in outputs:
                continue
            readers = [p for p in self._read_in[storage(made[0])] if p != path]
            norm = self._modules.get(readers[0]) if len(readers) == 1 else None
            # A norm counts the second axis as channels; after a Linear that is its outputs in two dimensions only.
            flat = isinstance(self._modules[path], nn.Linear) and made[0].ndim != 2
            if isinstance(norm, _BatchNorm) and self.calls[readers[0]] == 1 and not flat:
                found[path] = readers[0]
        return found
