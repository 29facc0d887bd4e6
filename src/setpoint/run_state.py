"""The state of runs in an optimizer's `state_dict()`, on every road that checkpoints take.

It rides in the optimizer's first parameter group, under one key, as one value of bytes. That is what all of these keep:
`state_dict()` and `load_state_dict()`, `torch.save` and `copy.deepcopy` of the optimizer itself,
`torch.distributed.checkpoint.state_dict.get_state_dict`, flattened or not, which drops all but `state` and
`param_groups`, and `torch.distributed.checkpoint.load`, which wants the same keys before and after. An optimizer that
loaded such a state before its run was built still has it there.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from setpoint.state_form import check_form
from setpoint.unfinished import warn_caller

# In a parameter group: the carrier while there are runs, and the bytes in a state dict.
KEY = "setpoint"
_MAGIC = b"setpoint-run-1"
# Optimizers that a run has left: that they hold no state of one is no loss.
_LET_GO: WeakSet[Optimizer] = WeakSet()
_DIGEST = 16


class CarriedRun(Protocol):
    """What has a state to carry."""

    @property
    def names(self) -> Sequence[str]:
        """Of the layers that it makes sparse, by which its state is recognised."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError unless a state is of a run that was told to do the same."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state back that was checked."""

    def miss_state(self, steps: int) -> None:
        """Hear that an optimizer which has taken steps was loaded without a state for this run."""


def encode(states: Sequence[Mapping[str, Any]]) -> bytes:
    """States of plain values and tensors as bytes, with a checksum."""
    buffer = io.BytesIO()
    torch.save([dict(state) for state in states], buffer)
    content = buffer.getvalue()
    return _MAGIC + _digest(content) + content


def decode(data: object) -> list[dict[str, Any]]:
    """The inverse of `encode`, with tensors on the CPU.

    Raises:
        ValueError: if the bytes are damaged, or are none of ours.
    """
    begin = len(_MAGIC) + _DIGEST
    whole = isinstance(data, bytes) and data[: len(_MAGIC)] == _MAGIC
    if not isinstance(data, bytes) or not whole or data[len(_MAGIC) : begin] != _digest(data[begin:]):
        raise ValueError(
            f"the optimizer's parameter group holds under {KEY!r} what is no state of a run, or one that was damaged: "
            "load the checkpoint from a copy"
        )
    states: list[dict[str, Any]] = torch.load(io.BytesIO(data[begin:]), map_location="cpu", weights_only=True)
    for state in states:
        check_form(state, ("asked",))
    return states


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST).digest()


class RunCarrier:
    """Carries the states of the runs of one optimizer in its state dict, and brings them back.

    Args:
        optimizer: in whose first group it sits until the last run leaves.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._runs: list[CarriedRun] = []
        # States that were loaded, and whose runs are not built yet.
        self._waiting = _taken(optimizer.param_groups)
        # Between the beginning and the end of a load: what each run is about to take, and what nobody asked for.
        self._loaded: list[tuple[CarriedRun, dict[str, Any]]] = []
        self._left: list[dict[str, Any]] = []
        self._sit(optimizer)
        self._handles: list[RemovableHandle] = [
            optimizer.register_state_dict_post_hook(self._save),
            optimizer.register_load_state_dict_pre_hook(self._check),
            optimizer.register_load_state_dict_post_hook(self._load),
        ]

    @classmethod
    def of(cls, optimizer: Optimizer) -> RunCarrier:
        """The carrier of an optimizer, which is made where there is none.

        Raises:
            ValueError: if the optimizer has loaded a state that is damaged.
        """
        found = (group.get(KEY) for group in optimizer.param_groups)
        return next((carrier for carrier in found if isinstance(carrier, cls)), None) or cls(optimizer)

    def join(self, run: CarriedRun, optimizer: Optimizer) -> bool:
        """Carry a run's state from now on; give it the state that was loaded for it, and say whether there was one.

        Raises:
            ValueError: if what was loaded is of another run; this one is not carried then.
        """
        try:
            state = _matching(run, self._waiting, taken=bool(self._runs))
            if state is not None:
                run.load_state_dict(state)
        except ValueError:
            self._end_if_empty(optimizer)
            raise
        self._runs.append(run)
        self._waiting = [other for other in self._waiting if other is not state]
        return state is not None

    def leave(self, run: CarriedRun, optimizer: Optimizer) -> None:
        """Carry a run no longer, whose owner has let go of it."""
        _LET_GO.add(optimizer)
        self._runs = [other for other in self._runs if other is not run]
        self._end_if_empty(optimizer)

    def encoded(self) -> bytes:
        """The states of all runs, as they ride in a state dict."""
        return encode([*(run.state_dict() for run in self._runs), *self._waiting])

    def look(self, optimizer: Optimizer) -> None:
        """Take a state that came on a road without hooks: an optimizer that loads in its own way, or its groups alone.

        Raises:
            ValueError: if it is of another run.
        """
        if optimizer.param_groups[0].get(KEY) is not self:
            groups = {"state": {}, "param_groups": optimizer.param_groups}
            self._check(optimizer, groups)
            self._load(optimizer)

    def __deepcopy__(self, memo: dict[int, Any]) -> bytes:
        return self.encoded()

    def __reduce__(self) -> tuple[Callable[[bytes], bytes], tuple[bytes]]:
        return bytes, (self.encoded(),)

    def __repr__(self) -> str:
        return f"{len(self._runs)} run(s)"

    def _sit(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            group.pop(KEY, None)
        optimizer.param_groups[0][KEY] = self

    def _end_if_empty(self, optimizer: Optimizer) -> None:
        if self._runs:
            return
        for handle in self._handles:
            handle.remove()
        for group in optimizer.param_groups:
            group.pop(KEY, None)
        if self._waiting:
            optimizer.param_groups[0][KEY] = encode(self._waiting)

    def _save(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        for group in state_dict["param_groups"]:
            group.pop(KEY, None)
        state_dict["param_groups"][0][KEY] = self.encoded()

    def _check(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Find each run's state, and refuse it before the optimizer has changed; nothing is taken yet."""
        self._loaded = []
        groups = [dict(group) for group in state_dict["param_groups"]]
        states = _taken(groups)
        if states:
            for run in self._runs:
                state = _matching(run, states, taken=False)
                assert state is not None
                run.check_state(state)
                self._loaded.append((run, state))
            used = [state for _, state in self._loaded]
            self._left = [state for state in states if not any(state is other for other in used)]
        elif state_dict["state"]:
            for run in self._runs:
                run.miss_state(steps_of(state_dict["state"]))
        return {**state_dict, "param_groups": groups}

    def _load(self, optimizer: Optimizer) -> None:
        """Give the runs their states, now that the optimizer has taken its own."""
        self._sit(optimizer)
        loaded, self._loaded = self._loaded, []
        if loaded:
            self._waiting = self._left
        for run, state in loaded:
            run.load_state_dict(state)


def _taken(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Take the states out of parameter groups."""
    found = [group.pop(KEY) for group in groups if KEY in group]
    states = [value for value in found if not isinstance(value, RunCarrier)]
    return decode(states[0]) if states else []


def _matching(run: CarriedRun, states: Sequence[dict[str, Any]], *, taken: bool) -> dict[str, Any] | None:
    """The state that speaks of a run's layers.

    Raises:
        ValueError: if there are states, and none of them does, unless they may be other runs' (`taken`).
    """
    own = set(run.names)
    common = [len(own & set(state["asked"]["layers"])) for state in states]
    if any(common):
        return states[common.index(max(common))]
    if states and not taken:
        there = "; ".join(_listed(state["asked"]["layers"]) for state in states)
        raise ValueError(
            f"the optimizer's state is of a run over other layers: {there} there, {_listed(run.names)} here; build the "
            f"same Sparsifier as the state is of, or, to begin another run, take it out of the optimizer's state dict: "
            f"state_dict['param_groups'][0].pop({KEY!r})"
        )
    return None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(list(names)[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


def was_let_go(optimizer: Optimizer) -> bool:
    """Whether a run has left this optimizer."""
    return optimizer in _LET_GO


def steps_of(state: Mapping[Any, Any]) -> int:
    """How many steps an optimizer says that it has taken; 0 where it does not say."""
    said = (entry.get("step") for entry in state.values() if isinstance(entry, Mapping))
    return max((int(step) for step in said if isinstance(step, int | float | torch.Tensor)), default=0)


def differing(there: Any, here: Any) -> tuple[str, str]:
    """Two values that are not the same, in words, without what they have in common."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        there, here = ({k: v for k, v in a.items() if b.get(k) != v} for a, b in ((there, here), (here, there)))
    return repr(there), repr(here)


def warn_of_missing_state(where: str, steps: int) -> None:
    """Say that a run begins anew although its optimizer does not."""
    taken = f" after {steps:,} steps" if steps else ""
    warn_caller(
        f"the optimizer's state{taken} holds no state of a setpoint run, so the run {where}. If it was saved with a "
        "run, the road that it took has dropped it: save optimizer.state_dict() whole, with its param_groups, and with "
        "torch.distributed.checkpoint build the Sparsifier before you load"
    )
