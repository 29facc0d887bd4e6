"""How many entries each layer may keep so that a model costs no more than its dense twin: in closed form."""

from __future__ import annotations

from collections.abc import Sequence


def iso_flop_counts(entries: Sequence[int], rates: Sequence[int], budget: int) -> list[int]:
    """Divide a budget of operations among layers at one density, down to whole entries.

    With N_l entries that take part in m_l operations each, the density `d = budget / sum(m_l N_l)` gives
    `n_l = floor(d N_l)`. The operations that are left over go to the layers that were cut shortest, one entry each
    where it fits, and then to the dearest entries that still fit. What remains is less than the largest m_l. Integers
    throughout: neither rounding nor a sample decides anything.

    Args:
        entries: N_l >= 1, of each layer's weight.
        rates: m_l >= 1, operations of each entry.
        budget: operations of all layers together.

    Returns:
        n_l, with `sum(m_l n_l) <= budget`.

    Raises:
        ValueError: if a layer would keep nothing, naming its position.
    """
    total = sum(n * m for n, m in zip(entries, rates))
    if budget >= total:
        return list(entries)
    for position, n in enumerate(entries):
        if budget * n < total:
            raise ValueError(
                f"{budget:,} of {total:,} operations leave none of the {n:,} entries at position {position}"
            )
    counts = [budget * n // total for n in entries]
    left = budget - sum(n * m for n, m in zip(counts, rates))
    # By the fraction that was rounded off, the largest first.
    for i in sorted(range(len(counts)), key=lambda i: budget * entries[i] % total, reverse=True):
        if rates[i] <= left:
            counts[i] += 1
            left -= rates[i]
    for i in sorted(range(len(counts)), key=lambda i: rates[i], reverse=True):
        more = min(left // rates[i], entries[i] - counts[i])
        counts[i] += more
        left -= more * rates[i]
    return counts
