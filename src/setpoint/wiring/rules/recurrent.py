"""Recurrent layers and cells, each one operator of the graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from setpoint.wiring.axes import Axis, concatenation, pin, product
from setpoint.wiring.calls import Call, Value
from setpoint.wiring.walk import Walk, fresh, rule

# By operator, the gates whose rows are stacked in its weights. Where a unit's rows are zero, its state stays zero in
# each of them, or decays from what it was given; what counts is that nothing reads it.
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
RECURRENT = {*_GATES, *(f"{name}_cell" for name in _GATES)}

_STACKED = "the gates of a recurrent layer are stacked along it"
_LAYERS = "numbers the layers and directions of a recurrent layer"
_PROJECTED = "a projected LSTM tells its states apart by their sizes, which must not become equal"


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(walk: Walk, call: Call) -> tuple[Value | None, ...]:
    """One hidden size for all layers and directions: unit j is the j-th of each."""
    value, states = call["input"], _states(call)
    batch, time = (0, 1) if call["batch_first"] else (1, 0)
    pin(value.axes[time], "a recurrent layer runs along it", call.module)
    for state in states:
        pin(state.axes[0], _LAYERS, call.module)
        walk.unify(call, state.axes[1], value.axes[batch])
    directions = 2 if call["bidirectional"] else 1
    count = len(call["params"]) // (int(call["num_layers"]) * directions)
    layers = [call["params"][i : i + count] for i in range(0, len(call["params"]), count)]
    shown, hidden = _hidden(walk, call, states)
    output = concatenation([shown] * directions)
    reads = [value.axes[-1] if i < directions else output for i in range(len(layers))]
    _weights(walk, call, layers, reads, (shown, hidden), call["has_biases"])
    result = Value((*value.axes[:2], output))
    return (result, *(Value((_layer_axis(call, s), s.axes[1], s.axes[2])) for s in states))


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(walk: Walk, call: Call) -> Value | tuple[Value | None, ...]:
    """One step of one layer."""
    value, states = call["input"], _states(call)
    for state in states:
        walk.unify(call, state.axes[0], value.axes[0])
    shown, hidden = _hidden(walk, call, states)
    weights = [call[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if call[name] is not None]
    _weights(walk, call, [weights], [value.axes[-1]], (shown, hidden), len(weights) > 2)
    results = tuple(Value((value.axes[0], s.axes[1])) for s in states)
    return results if call.several else results[0]


def _states(call: Call) -> list[Value]:
    """What the layers begin with: the output, and in LSTMs the cell's state."""
    given: Value | list[Value] = call["hx"]
    return given if isinstance(given, list) else [given]


def _layer_axis(call: Call, state: Value) -> Axis:
    return fresh([state.axes[0].size], _LAYERS, call.module)[0]


def _hidden(walk: Walk, call: Call, states: Sequence[Value]) -> tuple[Axis, Axis]:
    """The axis that a layer shows and that of its state, which are one unless the output is projected."""
    shown, hidden = states[0].axes[-1], states[-1].axes[-1]
    if shown.size == hidden.size:
        walk.unify(call, shown, hidden)
    else:
        pin((shown, hidden), _PROJECTED, call.module)
    return shown, hidden


def _weights(
    walk: Walk,
    call: Call,
    layers: Sequence[Sequence[Value]],
    reads: Sequence[Axis],
    states: tuple[Axis, Axis],
    biased: bool,
) -> None:
    """Weights (gates x hidden, inputs) and (gates x hidden, shown), biases (gates x hidden), projections."""
    shown, hidden = states
    (gates,) = fresh([_GATES[call.name.removesuffix("_cell")]], _STACKED, call.module)
    rows = product([gates, hidden])
    made: list[tuple[Value, Axis]] = []
    early: list[tuple[Value, Axis]] = []
    late: list[tuple[Value, Axis]] = []
    for (into, back, *rest), read in zip(layers, reads):
        made += [(weight, rows) for weight in (into, back, *rest[: 2 * biased])]
        made += [(projection, shown) for projection in rest[2 * biased :]]
        (early if read is reads[0] else late).append((into, read))
        late += [(back, shown), *((projection, hidden) for projection in rest[2 * biased :])]
    # In the order in which values flow, which tells neurons from a stream that is added to: the inputs are read, the
    # states are made, and read in turn.
    _read(walk, call, early)
    for weight, axis in made:
        walk.unify(call, weight.axes[0], axis)
        walk.use(call, weight, [weight.axes[0]], "produces")
    for state in _states(call):
        walk.use(call, state, [state.axes[-1]], "produces")
    _read(walk, call, late)


def _read(walk: Walk, call: Call, entries: Iterable[tuple[Value, Axis]]) -> None:
    for weight, axis in entries:
        walk.unify(call, weight.axes[1], axis)
        walk.use(call, weight, [weight.axes[1]], "consumes")
        if not weight.origin:
            pin(axis, "two activations are multiplied and summed over it", call.module)
