"""Axes of tensors: variables that are unified, factored and concatenated as operators demand.

An axis is an *atom*, a *product* of factors in row-major order (heads times head width, groups times channels of a
group) or a *concatenation* of parts. Declaring two axes to be one and the same refines both until their structures
agree: the product 4 x 16 and the product 16 x 4 become 4 x 4 x 4. Where no refinement exists, all that is involved is
pinned. Pins sit on atoms only, so an axis is free as far as any of its atoms is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from math import prod
from typing import Protocol

_numbers = count()


class Axis:
    """One axis of one or more tensors.

    Args:
        size: how many positions it has.

    Attributes:
        number: a running number, which orders axes by their creation.
    """

    __slots__ = ("_factors", "_parts", "_pins", "_same", "number", "size")

    def __init__(self, size: int) -> None:
        self.size = int(size)
        self.number = next(_numbers)
        self._same: Axis | None = None
        self._factors: tuple[Axis, ...] = ()
        self._parts: tuple[Axis, ...] = ()
        self._pins: dict[str, str] = {}

    def root(self) -> Axis:
        """The axis that stands for all that were unified with this one."""
        axis = self
        while axis._same is not None:
            if axis._same._same is not None:
                axis._same = axis._same._same
            axis = axis._same
        return axis

    @property
    def factors(self) -> tuple[Axis, ...]:
        """Roots whose product this axis is, outermost first and none a product itself; empty if it is no product."""
        nested = self.root()._factors
        return tuple(f for factor in nested for f in (factor.factors or (factor.root(),)))

    @property
    def parts(self) -> tuple[Axis, ...]:
        """Roots whose concatenation this axis is, none a concatenation itself; empty if it is none."""
        nested = self.root()._parts
        return tuple(p for part in nested for p in (part.parts or (part.root(),)))

    @property
    def pins(self) -> dict[str, str]:
        """Of an atom: by reason, the path of the module in which it was pinned."""
        return self.root()._pins

    def atoms(self) -> Iterator[Axis]:
        """The roots at the bottom of the structure, in order and with repeats."""
        children = self.factors or self.parts
        if not children:
            yield self.root()
        for child in children:
            yield from child.atoms()


def product(axes: Sequence[Axis]) -> Axis:
    """An axis that runs through all combinations, the last axis fastest."""
    axes = [a for a in axes if a.size != 1]
    if len(axes) == 1:
        return axes[0].root()
    whole = Axis(prod(a.size for a in axes))
    whole._factors = tuple(axes)
    return whole


def concatenation(axes: Sequence[Axis]) -> Axis:
    """An axis that runs through one axis after another."""
    axes = [a for a in axes if a.size != 0]
    if len(axes) == 1:
        return axes[0].root()
    whole = Axis(sum(a.size for a in axes))
    whole._parts = tuple(axes)
    return whole


def pin(axes: Axis | Iterable[Axis], reason: str, module: str) -> None:
    """Say that none of these axes may change, and why."""
    for axis in (axes,) if isinstance(axes, Axis) else axes:
        for atom in axis.atoms():
            atom._pins.setdefault(reason, module)


def unify(first: Axis, second: Axis, module: str) -> Axis:
    """Declare two axes to be one and the same; axes of one position are constants and stay apart.

    Args:
        first: of the same size as the second.
        second: ...
        module: where this was found, for the pins that follow if it cannot be.
    """
    first, second = first.root(), second.root()
    if first is second or first.size == second.size == 1:
        return first
    if first.size != second.size:
        return _clash(first, second, module)
    if not (first._factors or first._parts):
        first, second = second, first
    if not (second._factors or second._parts):
        _merge(first, second)
        for reason, place in second._pins.items():
            pin(first, reason, place)
    elif _join(first, second, module):
        first, second = first.root(), second.root()
        if first is not second:
            _merge(first, second)
    return first.root()


def _merge(stays: Axis, goes: Axis) -> None:
    goes._same = stays
    stays.number = min(stays.number, goes.number)


def _clash(first: Axis, second: Axis, module: str) -> Axis:
    reason = f"used as {describe(first)} and as {describe(second)} at once"
    pin((first, second), reason, module)
    return first


def describe(axis: Axis) -> str:
    """The structure of an axis in figures: `(4x16+64)`."""
    if axis.factors:
        return "x".join(describe(f) if f.factors or f.parts else str(f.size) for f in axis.factors)
    if axis.parts:
        return "(" + "+".join(describe(p) for p in axis.parts) + ")"
    return str(axis.size)


def _join(first: Axis, second: Axis, module: str) -> bool:
    """Refine two structures until they agree; False (and pinned) where they cannot."""
    if first.factors and second.parts:
        first, second = second, first
    if first.parts and second.factors:
        if split_product(first, second.factors[0].size, module) is None:
            return _join_run(first, second, module, split_concatenation, "parts")
        return _join_run(first, second, module, split_product, "factors")
    kind = "factors" if first.factors else "parts"
    return _join_run(first, second, module, split_product if first.factors else split_concatenation, kind)


def _join_run(first: Axis, second: Axis, module: str, split: _Split, kind: str) -> bool:
    left: list[Axis] = list(getattr(first, kind)) or [first]
    right: list[Axis] = list(getattr(second, kind)) or [second]
    while left and right:
        small, large = (left, right) if left[0].size <= right[0].size else (right, left)
        here, there = small.pop(0), large.pop(0)
        if here.size != there.size:
            pieces = split(there, here.size, module)
            if pieces is None:
                _clash(first, second, module)
                return False
            there = pieces[0]
            large.insert(0, pieces[1])
        unify(here, there, module)
    return True


class _Split(Protocol):
    """The signature that the two ways of splitting an axis share."""

    def __call__(self, axis: Axis, size: int, module: str, /) -> tuple[Axis, Axis] | None: ...


def _halves(atom: Axis, first: int, second: int) -> tuple[Axis, Axis]:
    pieces = Axis(first), Axis(second)
    for piece in pieces:
        piece._pins = dict(atom._pins)
    return pieces


def split_product(axis: Axis, outer: int, module: str) -> tuple[Axis, Axis] | None:
    """Write an axis as a product whose first factor has the size asked for; None if that contradicts what is known."""
    axis = axis.root()
    inner, rest = divmod(axis.size, outer)
    if rest:
        return None
    if axis._factors:
        return _split_factors(axis, outer, module)
    if axis._parts:
        return _split_parts(axis, inner, module)
    axis._factors = _halves(axis, outer, inner)
    return axis._factors[0], axis._factors[1]


def _split_factors(axis: Axis, outer: int, module: str) -> tuple[Axis, Axis] | None:
    factors = list(axis.factors)
    before: list[Axis] = []
    while factors and outer % factors[0].size == 0:
        outer //= factors[0].size
        before.append(factors.pop(0))
    if outer > 1:
        if not factors or factors[0].size % outer:
            return None
        pieces = split_product(factors[0], outer, module)
        if pieces is None:
            return None
        before.append(pieces[0])
        factors[0] = pieces[1]
    return product(before), product(factors)


def _split_parts(axis: Axis, inner: int, module: str) -> tuple[Axis, Axis] | None:
    parts = axis.parts
    if any(part.size % inner for part in parts):
        return None
    pairs: list[tuple[Axis, Axis]] = []
    for part in parts:
        pair = (Axis(1), part) if part.size == inner else split_product(part, part.size // inner, module)
        if pair is None:
            return None
        pairs.append(pair)
    for pair in pairs[1:]:
        unify(pairs[0][1], pair[1], module)
    axis._parts = ()
    axis._factors = concatenation([outer for outer, _ in pairs]), pairs[0][1].root()
    return axis._factors[0], axis._factors[1]


def split_concatenation(axis: Axis, first: int, module: str) -> tuple[Axis, Axis] | None:
    """Write an axis as a concatenation whose first part has the size asked for; None if that is not possible."""
    axis = axis.root()
    if axis._factors:
        outermost, rest = axis.factors[0], product(axis.factors[1:])
        pieces = None if first % rest.size else split_concatenation(outermost, first // rest.size, module)
        return None if pieces is None else (product([pieces[0], rest]), product([pieces[1], rest]))
    if axis._parts:
        return _split_concatenated(axis, first, module)
    axis._parts = _halves(axis, first, axis.size - first)
    return axis._parts[0], axis._parts[1]


def _split_concatenated(axis: Axis, first: int, module: str) -> tuple[Axis, Axis] | None:
    parts = list(axis.parts)
    before: list[Axis] = []
    while first and parts[0].size <= first:
        first -= parts[0].size
        before.append(parts.pop(0))
    if first:
        pieces = split_concatenation(parts[0], first, module)
        if pieces is None:
            return None
        before.append(pieces[0])
        parts[0] = pieces[1]
    return concatenation(before), concatenation(parts)
