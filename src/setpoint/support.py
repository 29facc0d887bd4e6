"""The support of a run: which units are kept, which entries are zero for it, and how that is held."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from setpoint.functional.bits import Mask, Masks
from setpoint.functional.entries import count_nonzero, zero_entries
from setpoint.moments import clear_state, mask_copies, mask_gradient, stays_zero
from setpoint.optimizer_set import OptimizerSet
from setpoint.reading import count, read
from setpoint.units import Layer

# Weights of which more than this part are not zero belong to no sparse run's checkpoint.
_SPARSE = 0.999


class Support:
    """Which units of some layers are kept, and which entries of their parameters are pruned.

    Args:
        layers: whose units are pruned.

    Attributes:
        parameters: of the layers, by name.
        pruned: by parameter, True where an entry is zero: fixed once frozen; before that, what a method holds at zero
            until its next update.
            Kept as bits on the CPU.
    """

    # Of its part of a run's state.
    KEYS: ClassVar[tuple[str, ...]] = ("pruned", "kept", "empty")

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        self.parameters = {part.name: part.parameter for layer in layers for part in layer.parts}
        self._names = {id(parameter): name for name, parameter in self.parameters.items()}
        self.pruned: dict[str, Mask] = {}
        self._kept: list[Mask] = []
        # Parts of kept units that are zero: as booleans when they were noted last, and as numbers once asked for.
        self._blank: list[Tensor] = []
        self._empty: list[Tensor] = []
        self._dense: dict[str, Tensor] = {}

    @property
    def kept(self) -> Masks:
        """By layer, which units are kept: once frozen, and of a method that is always sparse from the start.

        None before they are known.
        """
        return Masks(self._kept)

    @property
    def share(self) -> float:
        """Fraction of the entries that are pruned."""
        whole = sum(parameter.numel() for parameter in self.parameters.values())
        return sum(read([pruned.count() for pruned in self.pruned.values()])) / whole

    def keep(self, kept: Iterable[Tensor | Mask]) -> None:
        """Fix which units are kept, by layer."""
        self._kept = [Mask.of(units) for units in kept]

    @property
    def masks(self) -> dict[str, Tensor]:
        """By parameter, True where an entry is kept."""
        return {
            name: ~self.pruned[name].tensor() if name in self.pruned else torch.ones_like(parameter, dtype=torch.bool)
            for name, parameter in self.parameters.items()
        }

    def prune(self, factors: Mapping[int, Tensor | Mask]) -> None:
        """Prune the units whose factor is zero, or False, by the number of the layer, and no others."""
        self.pruned = {}
        for i, given in factors.items():
            for part, spread in self._layers[i].spread(given.tensor() if isinstance(given, Mask) else given):
                entries = Mask.of(~spread if spread.dtype is torch.bool else spread == 0)
                # A parameter may lose some to several layers.
                self.pruned[part.name] = self.pruned[part.name] | entries if part.name in self.pruned else entries

    @torch.no_grad()
    def hold(self, masked: OptimizerSet | None = None) -> None:
        """Bring back to zero what the optimizer moved.

        Args:
            masked: the optimizers, where their last step was taken with masked gradients and a cleared state: many of
                them then leave zeros alone.
        """
        for name, pruned in self.pruned.items():
            if masked is not None and stays_zero(masked.of(self.parameters[name])):
                continue
            zero_entries(self.parameters[name], pruned)

    def pruned_of(self, parameter: Tensor) -> Mask | None:
        """Which entries of a parameter are pruned; None if it is none of the run's, or dense."""
        name = self._names.get(id(parameter))
        return None if name is None else self.pruned.get(name)

    def mask_gradients(self, masked: Container[int] = ()) -> None:
        """Zero the gradients of what is pruned, but for parameters, by their ids, of which that is done."""
        for name, pruned in self.pruned.items():
            if id(self.parameters[name]) in masked:
                continue
            mask_gradient(self.parameters[name], pruned)

    def blank(self, layers: Sequence[Layer]) -> list[Tensor]:
        """By layer, which parts of kept units are zero now."""
        return [layer.blank() & kept for kept, layer in zip(self.kept, layers)]

    def note_empty(self, layers: Sequence[Layer]) -> None:
        """Note which parts of kept units are zero when the support is fixed: few, if any."""
        if any(layer.device.type != "cpu" for layer in layers):
            self._blank = self.blank(layers)
            return
        # One layer after another: all their masks together are as much as a quarter of the weights.
        noted: list[Tensor] = []
        for kept, layer in zip(self.kept, layers):
            self._blank = [layer.blank() & kept]
            self.number_empty()
            noted += self._empty
        self._empty = noted

    def note_settled(self, layers: Sequence[Layer], before: Sequence[Tensor]) -> None:
        """Note which parts of kept units a method has settled at zero, beside those noted that still are.

        Args:
            layers: as they are now.
            before: what was `blank` before the method settled them. What was zero already and is not noted was made so
                by somebody else.
        """
        self._blank = [now & (~was | noted) for now, was, noted in zip(self.blank(layers), before, self._noted(before))]

    def _noted(self, like: Sequence[Tensor]) -> list[Tensor]:
        if self._blank:
            return self._blank
        noted = [torch.zeros(units.shape, dtype=torch.bool, device=units.device) for units in like]
        for units, numbers in zip(noted, self._empty):
            units.view(-1)[numbers] = True
        return noted

    def number_empty(self) -> None:
        """Keep what was noted by its numbers, which take less memory."""
        if not self._blank:
            return
        # The numbers of a layer make the program wait for a GPU, so all layers are counted first, at once.
        counts = [int(n) for n in read([count_nonzero(parts) for parts in self._blank])]
        some = [parts.flatten() for parts, n in zip(self._blank, counts) if n]
        together = len({parts.device for parts in some}) == 1
        row = iter(_numbered(some) if together else [parts.nonzero().flatten() for parts in some])
        self._empty = [
            next(row) if n else torch.zeros(0, dtype=torch.long, device=parts.device)
            for parts, n in zip(self._blank, counts)
        ]
        self._blank = []

    @property
    def empty(self) -> list[Tensor]:
        """By layer, which parts of kept units were all zero when the run left them: numbers in `Layer.blank`, flat.

        None before the support is fixed.
        """
        self.number_empty()
        return self._empty

    def remember_dense(self) -> None:
        """Note the parameters as they are before a first support is drawn, if they may be those of a checkpoint.

        These are zero outside of the support of their state; weights that are not have none that they belong to.
        """
        numbers = [parameter.numel() for parameter in self.parameters.values()]
        if count(self.parameters.values()) <= _SPARSE * sum(numbers):
            self._dense = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def forget_dense(self) -> None:
        """Let go of what was noted: it has been trained since."""
        self._dense = {}

    def restore_dense(self, state: Mapping[str, Any]) -> None:
        """Put back what the first draw took from the weights that the support of a state belongs to.

        A checkpoint's weights may be in the model before the sparsifier is built, whose first draw is another support
        than the one that is taken back now. They are told by their zeros, which are those of that support. Weights that
        were loaded since are not what the draw left.
        """
        drawn, there = self.pruned, self._unpacked(state)
        for name, dense in self._dense.items():
            parameter = self.parameters[name]
            are_of_the_state = name in there and not bool(dense[there[name].tensor()].any())
            if are_of_the_state and torch.equal(parameter, dense.masked_fill(drawn[name].tensor(), 0.0)):
                parameter.copy_(dense)

    def clear_state(self, optimizers: OptimizerSet) -> None:
        """Zero what the optimizers remember of what is pruned."""
        for name, pruned in self.pruned.items():
            clear_state(optimizers.of(self.parameters[name]), self.parameters[name], pruned.view)

    def mask_copies(self, optimizers: OptimizerSet) -> None:
        """Zero what is pruned in the copies of parameters that the optimizers keep."""
        for name, pruned in self.pruned.items():
            mask_copies(optimizers.of(self.parameters[name]), self.parameters[name], pruned.view)

    def state_dict(self) -> dict[str, Any]:
        """A bit an entry, and a bit a unit."""
        pruned = {name: entries.packed.clone() for name, entries in self.pruned.items()}
        return dict(zip(self.KEYS, (pruned, [kept.packed.clone() for kept in self._kept], list(self.empty))))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state back; the parameters stay as they are."""
        self.pruned = self._unpacked(state)
        self._kept = [
            Mask.unpacked(packed, layer.counts, layer.device) for packed, layer in zip(state["kept"], self._layers)
        ]
        self._blank = []
        self._empty = [numbers.to(layer.device) for numbers, layer in zip(state["empty"], self._layers)]

    def _unpacked(self, state: Mapping[str, Any]) -> dict[str, Mask]:
        return {
            name: Mask.unpacked(packed, self.parameters[name].shape, self.parameters[name].device)
            for name, packed in state["pruned"].items()
        }


def _numbered(masks: Sequence[Tensor]) -> list[Tensor]:
    """The numbers of the True entries of each flat mask, of all masks at once."""
    numbers = torch.cat(list(masks)).nonzero().flatten()
    ends = torch.tensor([len(mask) for mask in masks]).cumsum(0)
    # How many numbers there are up to the end of each mask.
    upto = [0, *torch.searchsorted(numbers, ends.to(numbers.device)).tolist()]
    return [numbers[a:b] - begin for (a, b), begin in zip(pairwise(upto), [0, *ends.tolist()])]
