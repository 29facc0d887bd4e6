"""What may change in a model and what may not, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from setpoint.wiring.derive import derive
from setpoint.wiring.wiring import Group, Pin, Wiring


def explain(model: nn.Module, args: Any, kwargs: dict[str, Any] | None = None) -> str:
    """Derive the wiring of a model and describe it: groups, attributes that follow, branches, and all refusals.

    Args:
        model: to look at.
        args: example inputs, as for `derive`.
        kwargs: likewise.

    Raises:
        ValueError: if the model cannot be exported.
    """
    return describe(derive(model, args, kwargs, branches=True))


def describe(wiring: Wiring) -> str:
    """The same for a wiring at hand."""
    lines = [f"{len(wiring.groups)} groups of units may change:"]
    lines += [_group(group) for group in wiring.groups] or ["  none"]
    if wiring.attributes:
        lines.append("Attributes that follow:")
    for attribute in wiring.attributes:
        entry = "" if attribute.position is None else f"[{attribute.position}]"
        path = f"{attribute.module}.{attribute.name}" if attribute.module else attribute.name
        lines.append(f"  {path}{entry} is the size of {', '.join(attribute.layout.groups)}")
    pins: dict[tuple[str, str], list[Pin]] = {}
    for pin in wiring.pinned:
        if pin.reason != "kernel":
            pins.setdefault((pin.reason, pin.module), []).append(pin)
    lines.append("What may not change, and why:" if pins else "Nothing else is refused.")
    for (reason, module), found in pins.items():
        where = f" in {module}" if module else ""
        axes = [f"{pin.tensor} axis {pin.axis}" for pin in found]
        more = f" and {len(axes) - 3} more" if len(axes) > 4 else ""
        lines.append(f"  {reason}{where}: {', '.join(axes[:3] if more else axes)}{more}")
    return "\n".join([*lines, *_branches(wiring)])


def _branches(wiring: Wiring) -> Iterator[str]:
    if wiring.branches or wiring.refused:
        yield f"{len(wiring.branches)} residual branches may go whole:"
        for branch in wiring.branches:
            yield f"  {branch.name}: {', '.join(stand_in.path for stand_in in branch.modules)}"
    if wiring.refused:
        yield "Terms of sums that may not, and why:"
        yield from (f"  {name}: {reason}" for name, reason in wiring.refused.items())


def _group(group: Group) -> str:
    tensors = dict.fromkeys(f"{s.tensor} axis {s.axis}" for s in group.slices)
    return f"  {group.name}: {group.size} of kind {group.kind}, in {', '.join(tensors)}"
