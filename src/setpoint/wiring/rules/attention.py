"""Attention as one operator."""

from __future__ import annotations

from setpoint.wiring.axes import Axis, pin, product
from setpoint.wiring.calls import Call, Value
from setpoint.wiring.rules.elementwise import broadcast
from setpoint.wiring.walk import Walk, rule


@rule("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu")
def attention(walk: Walk, call: Call) -> Value | tuple[Value | None, ...]:
    """Queries (..., heads, length, width), keys and values (..., heads or groups of heads, positions, width)."""
    query, key, value, *mask = call.values
    scores = "the scores of attention are summed over it"
    walk.unify(call, query.axes[-1], key.axes[-1])
    pin(key.axes[-1], scores if call.arguments.get("scale") else f"{scores} and divided by its root", call.module)
    walk.unify(call, key.axes[-2], value.axes[-2])
    pin(key.axes[-2], "attention averages over it", call.module)
    if call.arguments.get("is_causal"):
        pin(query.axes[-2], "attention compares its positions", call.module)
    batch = _heads(walk, call, query, key, value)
    walk.heads += [(a, call.module) for a in batch if a.size != 1]
    walk.mixed.append(value.axes[-1])
    if mask:
        broadcast(walk, call, [mask[0], Value((*batch, query.axes[-2], key.axes[-2]))])
        walk.use(call, mask[0], [a for a in mask[0].axes if a.size != 1], "produces")
    result = Value((*batch, query.axes[-2], value.axes[-1]))
    return (result, *(None for _ in call.outputs[1:])) if call.several else result


def _heads(walk: Walk, call: Call, query: Value, key: Value, value: Value) -> list[Axis]:
    grouped = bool(call.arguments.get("enable_gqa")) and query.axes[-3].size != key.axes[-3].size
    if not grouped:
        return broadcast(walk, call, [Value(v.axes[:-2]) for v in (query, key, value)])
    walk.unify(call, key.axes[-3], value.axes[-3])
    queries = Axis(query.axes[-3].size // key.axes[-3].size)
    walk.unify(call, query.axes[-3], product([a for a in (key.axes[-3], queries) if a.size != 1]))
    rest = broadcast(walk, call, [Value(v.axes[:-3]) for v in (query, key, value)])
    return [*rest, query.axes[-3]]
