"""Which optimizers a run can hang on: where in their wrappers, and whether zeros last under them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType, FunctionType, MethodType
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from setpoint.entry_state import Memory
from setpoint.moments import remember
from setpoint.optimizer_copy import held, nested
from setpoint.optimizer_trial import BrokenZerosError, try_out

_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
)


def checked_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer whose step hooks a run hangs on: the innermost one under which zeros last.

    Wrappers of training frameworks are seen through, and so are those that move weights themselves, such as Lookahead.
    Whether zeros last is tried on a copy with a few small tensors (`setpoint.optimizer_trial`); an optimizer that
    cannot be copied is taken to be an ordinary one.

    Raises:
        TypeError: for what is no optimizer and holds none.
        ValueError: for one that runs no step hooks, moves the weights many times within one step, fails where weights
            are held at zero, or brings them back.
    """
    chain = _chain(optimizer)
    reason = "its step does not run the step hooks of torch.optim.Optimizer"
    for site in reversed(chain):
        if not _runs_hooks(site):
            continue
        try:
            remember(site, _tried(chain, site))
        except BrokenZerosError as broken:
            reason = str(broken)
            continue
        return site  # type: ignore[no-any-return]
    raise ValueError(
        f"optimizer {type(optimizer).__name__}: {reason}; possible: SGD, Adam, AdamW and other optimizers that "
        "move the weights once a step and leave zeros with zero gradients alone"
    )


def _chain(optimizer: Any) -> list[Any]:
    """The optimizer and what it wraps, as far as one holds one."""
    chain = [optimizer]
    while len(inner := [o for o in _distinct(chain[-1]) if o not in chain]) == 1:
        chain += inner
    if not isinstance(chain[-1], Optimizer):
        several = f", which holds {len(inner)} of them: hand these over as a list" if inner else ""
        raise TypeError(
            "optimizer must be a torch.optim.Optimizer, or a wrapper that holds one, not "
            f"{type(optimizer).__name__}{several}"
        )
    return chain


def _distinct(holder: Any) -> list[Optimizer]:
    return list({id(o): o for o in held(holder)}.values())


def _tried(chain: list[Any], site: Optimizer) -> list[tuple[Memory, list[Any]]]:
    """What is known of an optimizer with as many of its wrappers as can be tried, and those of which nothing is."""
    unknown: list[Any] = []
    for outermost in chain[: chain.index(site) + 1]:
        holders = nested(outermost)
        memory = try_out(holders, site)
        if memory is not None:
            states = [getattr(holder, "state", None) for holder in holders]
            apart = [o for o in unknown if not any(getattr(o, "state", None) is state for state in states)]
            return [(memory, holders), (Memory(), apart)]
        unknown.append(outermost)
    return [(Memory(), nested(chain[0]))]


def _runs_hooks(optimizer: Any) -> bool:
    """Whether the hooks exist and the step, as it stands now, reaches the one that torch has put them around."""
    return all(hasattr(optimizer, name) for name in _HOOKS) and any(
        getattr(function, "hooked", False) for function in _reached(optimizer.step)
    )


def _reached(function: Any) -> Iterator[Any]:
    """A function and those that it holds: what it wraps, is bound to, or closes over."""
    found, seen = [function], set()
    for current in found:
        if id(current) in seen or not callable(current):
            continue
        seen.add(id(current))
        yield current
        if isinstance(current, MethodType):
            found.append(current.__func__)
        elif isinstance(current, FunctionType):
            found += [cell.cell_contents for cell in current.__closure__ or () if _filled(cell)]
        found += [getattr(current, name) for name in ("__wrapped__", "func", "_orig_mod") if hasattr(current, name)]


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def register_step_hooks(
    optimizer: Optimizer, before: Callable[..., Any], after: Callable[..., Any]
) -> list[RemovableHandle]:
    """Hang two functions on the steps of an optimizer, once a step.

    torch puts its hooks around the step of every class that is used: those of a class whose step calls the one it
    inherits run twice, if both classes are in use. Here the outer call counts.
    """
    calls = _OuterCalls(before, after)
    return [optimizer.register_step_pre_hook(calls.enter), optimizer.register_step_post_hook(calls.leave)]


class _OuterCalls:
    def __init__(self, before: Callable[..., Any], after: Callable[..., Any]) -> None:
        self._before, self._after = before, after
        # The call that the hooks run in; one that has ended by an exception may still stand here.
        self._frame: FrameType | None = None

    def enter(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        caller = sys._getframe(1)
        if self._runs_in(caller):
            return None
        self._frame = caller
        return self._before(optimizer, args, kwargs)

    def leave(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if sys._getframe(1) is self._frame:
            self._frame = None
            self._after(optimizer, args, kwargs)

    def _runs_in(self, frame: FrameType | None) -> bool:
        while self._frame is not None and frame is not None:
            if frame is self._frame:
                return True
            frame = frame.f_back
        return False
