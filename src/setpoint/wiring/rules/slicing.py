"""Operators that join axes, cut them, and pick positions."""

from __future__ import annotations

from collections.abc import Sequence

from setpoint.wiring.axes import Axis, concatenation, pin
from setpoint.wiring.calls import Call, Constraint, Value
from setpoint.wiring.rules.elementwise import broadcast, merged
from setpoint.wiring.sizes import Constant, Operation, SizeOf
from setpoint.wiring.walk import Walk, fresh, rule

# Slices without an end have the largest 64-bit integer as theirs.
_NO_END = 2**62


def cut(walk: Walk, call: Call, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Pieces of these sizes, which lie one after another along an axis."""
    if len(sizes) == 1:
        return [axis]
    pieces = [Axis(s) for s in sizes]
    walk.unify(call, axis, concatenation(pieces))
    return pieces


@rule("glu")
def glu(walk: Walk, call: Call) -> Value:
    """The first half of an axis times the sigmoid of the second."""
    value, dim = call.first, call.dims("dim")[0]
    half = value.axes[dim].size // 2
    first, second = cut(walk, call, value.axes[dim], [half, half])
    walk.unify(call, first, second)
    return value.moved((*value.axes[:dim], first, *value.axes[dim + 1 :]))


@rule("cat", "concat", "concatenate")
def cat(walk: Walk, call: Call) -> Value:
    """Parts along one axis; the other axes are shared."""
    values = [v for v in call.values if not (len(v.axes) == 1 and v.axes[0].size == 0)]
    dim = int(call.arguments.get("dim") or 0) % len(values[0].axes)
    for other in values[1:]:
        for i, (mine, theirs) in enumerate(zip(values[0].axes, other.axes)):
            if i != dim:
                walk.unify(call, mine, theirs)
    axes = list(values[0].axes)
    axes[dim] = concatenation([v.axes[dim] for v in values])
    return merged(axes, values)


@rule("stack")
def stack(walk: Walk, call: Call) -> Value:
    """A new axis that numbers the tensors."""
    axes = broadcast(walk, call, call.values)
    (added,) = fresh([len(call.values)], "numbers the tensors of a stack", call.module)
    axes.insert(int(call["dim"]) % (len(axes) + 1), added)
    return merged(axes, call.values)


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk")
def split(walk: Walk, call: Call) -> tuple[Value | None, ...]:
    """Pieces of one axis, of sizes that were told or follow from their number."""
    value = call.first
    dim = call.dims("dim")[0]
    axis = value.axes[dim]
    pieces = cut(walk, call, axis, [o.shape[dim] for o in call.outputs if o is not None])
    told = next(iter(list(call.arguments.values())[1:2]))
    if "chunk" in call.name:
        _equal(walk, call, axis, pieces)
    else:
        for i, piece in enumerate(pieces):
            given = told[i] if isinstance(told, list | tuple) else told
            reason = f"size written as a number in {call.name!r}"
            walk.size(call, piece, given if given == piece.size else piece.size, reason)
    return tuple(value.moved((*value.axes[:dim], p, *value.axes[dim + 1 :])) for p in pieces)


def _equal(walk: Walk, call: Call, axis: Axis, pieces: Sequence[Axis]) -> None:
    """Chunks are cut by their number, so they must stay of one size."""
    key = f"chunks of axis {axis.number}"
    walk.named[key] = Value((axis,))
    each = Operation("//", SizeOf(key, 0, axis.size), Constant(len(pieces)))
    for piece in pieces if len(pieces) > 1 else ():
        walk.constraints.append(Constraint(piece, each, call.module, "chunks must stay of one size"))


@rule("unbind")
def unbind(walk: Walk, call: Call) -> tuple[Value | None, ...]:
    """One tensor for each position."""
    value, dim = call.first, call.dims("dim")[0]
    pin(value.axes[dim], "positions are picked by number in 'unbind'", call.module)
    return tuple(value.moved((*value.axes[:dim], *value.axes[dim + 1 :])) for _ in call.outputs)


@rule("select")
def select(walk: Walk, call: Call) -> Value:
    """One position."""
    value, dim = call.first, call.dims("dim")[0]
    pin(value.axes[dim], "a position is picked by number in 'select'", call.module)
    return value.moved((*value.axes[:dim], *value.axes[dim + 1 :]))


@rule("slice", "narrow")
def slice_(walk: Walk, call: Call) -> Value:
    """A run of positions; its ends must be sizes that follow, or the pieces are pinned."""
    value, dim = call.first, call.dims("dim")[0]
    axis, size = value.axes[dim], call.shape[dim]
    if call.arguments.get("step", 1) != 1:
        pin(axis, "positions are skipped in 'slice'", call.module)
        (piece,) = fresh([size], "positions are skipped in 'slice'", call.module)
    else:
        piece = _run(walk, call, axis, size)
    return value.moved((*value.axes[:dim], piece, *value.axes[dim + 1 :]))


def _run(walk: Walk, call: Call, axis: Axis, size: int) -> Axis:
    """The piece of an axis that a slice takes."""
    reason = f"size written as a number in {call.name!r}"
    start, end = call.arguments["start"] or 0, call.arguments.get("end")
    first = start if start >= 0 else max(axis.size + start, 0)
    pieces = cut(walk, call, axis, [s for s in (first, size, axis.size - first - size) if s > 0])
    if first:
        walk.size(call, pieces[0], start if start > 0 else first, reason)
    elif start < 0:
        pin(axis, reason, call.module)
    if call.name == "narrow":
        walk.size(call, pieces[bool(first)], call["length"], reason)
    elif end is not None and end < _NO_END:
        told = concatenation(pieces[: 1 + bool(first)])
        walk.size(call, told, end if end == told.size else told.size, reason)
    return pieces[bool(first)] if size else Axis(0)


@rule("index", "index_put", "_unsafe_index", "index_select", "gather", "take_along_dim", "index_add", "index_copy",
      "scatter", "scatter_add", "masked_select", "nonzero", "take")  # fmt: skip
def index(walk: Walk, call: Call) -> Value | tuple[Value | None, ...]:
    """Positions are picked by numbers in tensors: the picked axes are pinned."""
    reason = f"positions are picked by {call.name!r}"
    if call.name in ("index", "_unsafe_index"):
        return _index(walk, call, reason)
    if call.name == "index_select":
        axes, dim = list(call.first.axes), call.dims("dim")[0]
        pin(axes[dim], reason, call.module)
        (axes[dim],) = fresh([call.shape[dim]], reason, call.module)
        return call.first.moved(axes)
    return walk.refuse(call, reason)


def _index(walk: Walk, call: Call, reason: str) -> Value | tuple[Value | None, ...]:
    value, indices = call.first, list(call["indices"])
    picked = [i for i, given in enumerate(indices) if given is not None]
    pin([value.axes[i] for i in picked], reason, call.module)
    masks = any(len(indices[i].axes) != 1 and _is_mask(call, i) for i in picked)
    if masks or not picked:
        return walk.refuse(call, reason)
    numbers = broadcast(walk, call, [indices[i] for i in picked])
    together = picked == list(range(picked[0], picked[-1] + 1))
    rest = [a for i, a in enumerate(value.axes) if i not in picked]
    place = picked[0] if together else 0
    axes = [*rest[:place], *numbers, *rest[place:]]
    if [a.size for a in axes] != list(call.shape):
        return walk.refuse(call, reason)
    return value.moved(axes)


def _is_mask(call: Call, position: int) -> bool:
    value, given = call.first, call["indices"][position]
    return [a.size for a in given.axes] == [a.size for a in value.axes[position : position + len(given.axes)]]


@rule("embedding")
def embedding(walk: Walk, call: Call) -> Value:
    """Rows are picked by number, columns are the width."""
    weight, numbers = call["weight"], call["indices"]
    pin(weight.axes[0], "vocabulary", call.module)
    walk.use(call, weight, [weight.axes[1]], "produces")
    return Value((*numbers.axes, weight.axes[1]))


@rule("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(walk: Walk, call: Call) -> Value | tuple[Value | None, ...]:
    """Rows are picked by number and summed, averaged or compared, each column alone."""
    weight = call["weight"]
    pin(weight.axes[0], "vocabulary", call.module)
    walk.use(call, weight, [weight.axes[1]], "produces")
    result = Value((*fresh(call.shape[:1], "a number of bags", call.module), weight.axes[1]))
    others = (None if o is None else walk.opaque(o.shape, "numbers of bags", call.module) for o in call.outputs[1:])
    return (result, *others) if call.several else result


@rule("embedding_renorm")
def embedding_renorm(walk: Walk, call: Call) -> Value | tuple[Value | None, ...]:
    """Rows are scaled down in place where their norm is above a bound."""
    return walk.refuse(call, "the norm over it is bounded by max_norm")
