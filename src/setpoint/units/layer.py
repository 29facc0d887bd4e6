"""Layers: the units that are counted and ranked together, and the parameters they reach into."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from setpoint.functional.bits import Mask
from setpoint.functional.entries import multiply_entries, writable
from setpoint.functional.values import Entries, Values
from setpoint.units.partition import Partition


@dataclass(frozen=True, eq=False)
class Part:
    """One parameter that units reach into, and which of its entries are whose.

    Attributes:
        name: of the parameter.
        parameter: itself.
        partition: its entries by unit.
        reads: whether what a unit does is in proportion to these entries: as it is to what reads its values, such as
            the columns of the weight that follows, and to the last map of a branch.
        follows: whether the entries go with their unit, and are otherwise left alone: they count in no magnitude, and
            no factor acts on them.
    """

    name: str
    parameter: nn.Parameter
    partition: Partition
    reads: bool = False
    follows: bool = False


@dataclass(frozen=True, eq=False)
class Layer:
    """Units of one kind: those of one parameter, or along one axis that several parameters share.

    A unit's magnitude is the l2 norm of all its entries, in whatever parameters they are; its factor multiplies them
    all. Methods see magnitudes and answer with factors of the shape `counts`.

    Attributes:
        name: of the parameter, or of the shared axis.
        parts: the parameters; their partitions have the same counts. The first does not follow.
        scale: what the norms are divided by to give magnitudes that can be compared, where units differ in kind: of
            the shape `counts`, on the CPU.
        names: of the units, where each has one.
    """

    name: str
    parts: tuple[Part, ...]
    scale: Tensor | None = None
    names: tuple[str, ...] = ()

    @property
    def partition(self) -> Partition:
        """How the units are arranged, as the first part has it."""
        return self.parts[0].partition

    @property
    def counts(self) -> tuple[int, ...]:
        """How many units there are along each axis."""
        return self.partition.counts

    @property
    def device(self) -> torch.device:
        """Where magnitudes and factors are."""
        return self.parts[0].parameter.device

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first part's parameter."""
        return tuple(self.parts[0].parameter.shape)

    @property
    def rest(self) -> int:
        """How many entries belong to no unit and always stay, where the units are a pattern."""
        return self.partition.rest

    @property
    def acted_on(self) -> tuple[Part, ...]:
        """The parts that count in magnitudes and that factors act on."""
        return tuple(part for part in self.parts if not part.follows)

    @property
    def leading(self) -> tuple[Part, ...]:
        """For each unit, the first part that has entries of it and does not follow."""
        found: list[Part] = []
        bare = torch.ones(self.counts, dtype=torch.bool)
        for part in self.acted_on:
            there = (part.partition.sizes() > 0).expand(self.counts)
            if bool((bare & there).any()):
                found.append(part)
                bare = bare & ~there
        return tuple(found)

    def sizes(self) -> Tensor:
        """How many entries each unit has: a float64 tensor that broadcasts to `counts`."""
        sizes = [part.partition.sizes() for part in self.parts]
        return sizes[0] if len(sizes) == 1 else torch.stack([size.expand(self.counts) for size in sizes]).sum(0)

    def magnitudes(self) -> Tensor:
        """The l2 norm of each unit by its scale, in float32 or better, on the layer's device."""
        norms = [part.partition.magnitudes(part.parameter.detach()) for part in self.acted_on]
        whole = norms[0]
        if len(norms) > 1:
            whole = torch.linalg.vector_norm(torch.stack([n.to(self.device) for n in norms]), dim=0)
        return whole if self.scale is None else whole / self.scale.to(whole)

    def entries(self) -> Tensor | None:
        """The parameter itself in the shape `counts`, where each unit is one of its entries and they lie in that order.

        Then a magnitude is the size of an entry, and need not be computed before it is looked at.
        """
        if len(self.parts) > 1 or self.scale is not None:
            return None
        return self.partition.entries(self.parts[0].parameter.detach())

    def values(self) -> Entries:
        """The magnitudes, computed where they are looked at if units are single entries."""
        entries = self.entries()
        return Entries(self.magnitudes(), signed=False) if entries is None else Entries(entries)

    @torch.no_grad()
    def gradients(self, *, copy: bool) -> Entries:
        """The l2 norm of the gradient of each unit, in float32 or better, on the layer's device; 0 without one.

        Args:
            copy: whether they must last when the gradients change.
        """
        gradient = self.parts[0].parameter.grad
        if self.entries() is not None and gradient is not None and not gradient.is_sparse:
            entries = self.partition.entries(gradient.detach())
            if entries is not None:
                return Entries(entries.clone() if copy else entries)
        return Entries(self._gradient_norms(), signed=False)

    def _gradient_norms(self) -> Tensor:
        squares = torch.zeros(self.counts, dtype=torch.float64, device=self.device)
        for part in self.parts:
            if part.parameter.grad is not None:
                # Squares of float32 neither overflow nor vanish in float64, and the root gives the same order back.
                square = part.parameter.grad.double().square()
                squares += part.partition.sums(square, part.parameter.detach()).to(self.device)
        exact = torch.promote_types(self.parts[0].parameter.dtype, torch.float32)
        return squares.sqrt_().to(exact)

    def spread(self, factors: Tensor) -> Iterator[tuple[Part, Tensor]]:
        """Each part with its entries' factors, of the parameter's shape."""
        for part in self.parts:
            yield part, part.partition.expand(factors.to(part.parameter.device), part.parameter.detach())

    @torch.no_grad()
    def multiply(self, factors: Tensor | Values | Mask) -> None:
        """Multiply the entries of each unit by its factor: True and False stand for one and zero."""
        entries = self.entries()
        if entries is not None and writable(entries):
            multiply_entries(entries, factors)
            return
        factors = factors if isinstance(factors, Tensor) else factors.tensor()
        for part in self.acted_on:
            part.partition.multiply(part.parameter.detach(), factors.to(part.parameter.device))

    def alive(self) -> Tensor:
        """Which units have an entry that is not zero, and does not merely follow."""
        if (entries := self.entries()) is not None:
            return entries != 0
        norms = [part.partition.magnitudes((part.parameter.detach() != 0).float()) for part in self.acted_on]
        return torch.stack([n.to(self.device) for n in norms]).amax(0) > 0

    def blank(self) -> Tensor:
        """In which parts each unit has entries, and none that is not zero: booleans of shape (parts, *counts).

        The parts are those that are `acted_on`.
        """
        if (entries := self.entries()) is not None:
            return (entries == 0)[None]
        found = [_blank(part).to(self.device) for part in self.acted_on]
        return found[0][None] if len(found) == 1 else torch.stack(found)


def _blank(part: Part) -> Tensor:
    bare = part.partition.magnitudes((part.parameter.detach() != 0).float()) == 0
    there = part.partition.sizes() > 0
    return bare if bool(there.all()) else bare & there.to(bare.device)
