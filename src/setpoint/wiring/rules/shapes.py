"""Views: what reshapes, moves, adds and drops axes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from setpoint.wiring.axes import Axis, pin, product
from setpoint.wiring.calls import Call, Value
from setpoint.wiring.walk import Walk, fresh, rule

_WRITTEN = "size written as a number in {!r}"


def reshape(walk: Walk, call: Call, axes: Sequence[Axis], sizes: Sequence[int], told: Sequence[int]) -> list[Axis]:
    """The axes of a view, in row-major order.

    Args:
        walk: told of the sizes.
        call: the view.
        axes: before.
        sizes: after.
        told: the sizes as the operator was given them, one of which may be -1.
    """
    result: list[Axis] = []
    before = [a for a in axes if a.size != 1]
    position = 0
    while position < len(sizes):
        if sizes[position] == 1:
            result.append(Axis(1))
            position += 1
            continue
        taken, block = [before.pop(0)], [sizes[position]]
        position += 1
        while prod(a.size for a in taken) != prod(block):
            if prod(a.size for a in taken) < prod(block):
                taken.append(before.pop(0))
            else:
                block.append(sizes[position])
                position += 1
        result += _block(walk, call, taken, block)
    reason = _WRITTEN.format(call.name)
    for axis, given in zip(result, told):
        if given != -1:
            walk.size(call, axis, given, reason)
    return result


def _block(walk: Walk, call: Call, taken: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
    whole = product(taken)
    if len([s for s in sizes if s != 1]) == 1:
        return [whole if s != 1 else Axis(1) for s in sizes]
    pieces = [Axis(s) for s in sizes]
    walk.unify(call, whole, product(pieces))
    return pieces


@rule("view", "reshape", "_unsafe_view", "view_copy", "_reshape_alias")
def view(walk: Walk, call: Call) -> Value:
    """A new shape; a size that is not -1 must follow its axis."""
    if "size" not in call.arguments and "shape" not in call.arguments:
        return call.first  # a view as another dtype
    told = call.arguments["size"] if "size" in call.arguments else call["shape"]
    return call.first.moved(reshape(walk, call, call.first.axes, call.shape, told))


@rule("view_as", "reshape_as", "expand_as")
def like(walk: Walk, call: Call) -> Value:
    """The shape of another tensor."""
    value, other = call.values
    if call.name == "expand_as":
        kept = [(None,) * (len(other.axes) - len(value.axes)), value.axes]
        own = [axis for group in kept for axis in group]
        for mine, theirs in zip(own, other.axes):
            if mine is not None and mine.size == theirs.size:
                walk.unify(call, mine, theirs)
        return value.moved(other.axes)
    axes = reshape(walk, call, value.axes, call.shape, [-1] * len(call.shape))
    for mine, theirs in zip(axes, other.axes):
        walk.unify(call, mine, theirs)
    return value.moved(axes)


@rule("flatten")
def flatten(walk: Walk, call: Call) -> Value:
    """Consecutive axes become one."""
    axes = call.first.axes
    if not axes:
        return call.first.moved([Axis(1)])
    start, end = call.dims("start_dim")[0], call.dims("end_dim")[0]
    inside = [a for a in axes[start : end + 1] if a.size != 1]
    return call.first.moved((*axes[:start], product(inside) if inside else Axis(1), *axes[end + 1 :]))


@rule("unflatten")
def unflatten(walk: Walk, call: Call) -> Value:
    """One axis becomes several."""
    axes, dim, told = call.first.axes, call.dims("dim")[0], call["sizes"]
    pieces = reshape(walk, call, [axes[dim]], call.shape[dim : dim + len(told)], told)
    return call.first.moved((*axes[:dim], *pieces, *axes[dim + 1 :]))


@rule("permute", "transpose", "swapaxes", "swapdims", "t", "numpy_T", "mT", "adjoint", "movedim", "moveaxis")
def permute(walk: Walk, call: Call) -> Value:
    """The same axes in another order."""
    axes = call.first.axes
    order = list(range(len(axes)))
    if call.name == "permute":
        order = call.dims("dims")
    elif call.name in ("t", "numpy_T"):
        order.reverse()
    elif call.name in ("mT", "adjoint"):
        order[-2:] = reversed(order[-2:])
    elif call.name in ("movedim", "moveaxis"):
        order = _moved(call, len(axes))
    else:
        first, second = list(call.arguments.values())[1:3]
        first, second = int(first) % len(axes), int(second) % len(axes)
        order[first], order[second] = second, first
    return call.first.moved([axes[i] for i in order])


def _moved(call: Call, rank: int) -> list[int]:
    source, target = call.dims("source"), call.dims("destination")
    rest = iter(i for i in range(rank) if i not in source)
    places = dict(zip(target, source))
    return [places[i] if i in places else next(rest) for i in range(rank)]


@rule("squeeze")
def squeeze(walk: Walk, call: Call) -> Value:
    """Axes of one position are dropped."""
    dims = call.dims("dim")
    return call.first.moved([a for i, a in enumerate(call.first.axes) if a.size != 1 or i not in dims])


@rule("unsqueeze")
def unsqueeze(walk: Walk, call: Call) -> Value:
    """An axis of one position is added."""
    axes = list(call.first.axes)
    axes.insert(int(call["dim"]) % (len(axes) + 1), Axis(1))
    return call.first.moved(axes)


@rule("expand", "broadcast_to", "expand_copy")
def expand(walk: Walk, call: Call) -> Value:
    """Axes of one position are stretched to a size that was told."""
    axes = call.first.axes
    missing = len(call.shape) - len(axes)
    told = call["size"]
    result: list[Axis] = []
    for i, size in enumerate(call.shape):
        axis = axes[i - missing] if i >= missing else Axis(1)
        stretched = axis if axis.size == size else Axis(size)
        if told[i] != -1:
            walk.size(call, stretched, told[i], _WRITTEN.format(call.name))
        result.append(stretched)
    return call.first.moved(result)


@rule("repeat", "tile")
def repeat(walk: Walk, call: Call) -> Value:
    """Each axis as often as told, one copy after another."""
    told = call["repeats"] if "repeats" in call.arguments else call["dims"]
    axes = [Axis(1)] * (len(call.shape) - len(call.first.axes)) + list(call.first.axes)
    told = [1] * (len(axes) - len(told)) + list(told)
    return call.first.moved([_repeated(walk, call, a, n, outer=True) for a, n in zip(axes, told)])


@rule("repeat_interleave")
def repeat_interleave(walk: Walk, call: Call) -> Value | tuple[Value | None, ...]:
    """Each position as often as told."""
    if isinstance(call["repeats"], Value) or call["dim"] is None:
        return walk.refuse(call, "positions are repeated by numbers in a tensor")
    axes, dim = list(call.first.axes), call.dims("dim")[0]
    axes[dim] = _repeated(walk, call, axes[dim], call["repeats"], outer=False)
    return call.first.moved(axes)


def _repeated(walk: Walk, call: Call, axis: Axis, times: int, outer: bool) -> Axis:
    copies = Axis(times)
    walk.size(call, copies, times, f"number of copies written as a number in {call.name!r}")
    whole = [a for a in ((copies, axis) if outer else (axis, copies)) if a.size != 1]
    return product(whole) if whole else Axis(1)


@rule("view_as_complex", "view_as_real")
def complex_pairs(walk: Walk, call: Call) -> Value:
    """The last axis, of two positions, becomes a complex number, or the reverse."""
    axes = list(call.first.axes)
    reason = "real and imaginary part"
    if call.name == "view_as_complex":
        pin(axes.pop(), reason, call.module)
    else:
        axes += fresh([2], reason, call.module)
    return call.first.moved(axes)


@rule("diagonal", "unfold", "as_strided", "im2col", "col2im", "tril", "triu")
def geometry(walk: Walk, call: Call) -> Value | tuple[Value | None, ...]:
    """Pin the axes whose positions count; the others pass."""
    if call.name in ("tril", "triu"):
        pin(call.first.at(-2, -1), f"{call.name!r} counts its positions", call.module)
        return call.first
    if call.name == "unfold":
        axes, dim = list(call.first.axes), call.dims("dimension")[0]
        pin(axes[dim], "windows are taken along it", call.module)
        axes[dim : dim + 1] = fresh([call.shape[dim]], "windows are taken along it", call.module)
        return call.first.moved([*axes, *fresh([call.shape[-1]], "windows are taken along it", call.module)])
    return walk.refuse(call, f"{call.name!r} counts positions")
