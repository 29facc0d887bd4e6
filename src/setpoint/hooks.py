"""What hangs on an optimizer: seeing each step that really happens, and riding in its state dict."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from setpoint.optimizers import register_step_hooks

NonFinite = Literal["skip", "raise", "unchecked"]
_STATE_KEY = "setpoint"
# So many steps in a row without one finite gradient are no accident of a loss scale.
_PATIENCE = 100


class StepHooks:
    """Calls `after` once for every optimizer step that was taken, and not for those that were skipped.

    A step is skipped where gradients hold NaN or infinite values: by a gradient scaler (which then does not step, or
    hands `found_inf` to a fused optimizer), and otherwise here, by taking the gradients away, so that the optimizer
    touches neither weights nor its own state.

    Args:
        optimizer: one that `setpoint.optimizers.checked_optimizer` has let through.
        before: called before each step that will be taken, its gradients being ready.
        after: called after each step taken.
        key: names this user of the optimizer in its state dict.
        save: gives the state to ride in the optimizer's `state_dict()`.
        load: takes it back, before the optimizer loads its own.
        nonfinite: `"skip"` as said, with a warning; `"raise"` refuses the step with FloatingPointError; `"unchecked"`
            does not look at gradients, which takes a pass over them and, on a GPU, waits for them.

    Raises:
        ValueError: for another value of `nonfinite`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        before: Callable[[], None],
        after: Callable[[], None],
        key: str,
        save: Callable[[], dict[str, Any]],
        load: Callable[[dict[str, Any]], None],
        nonfinite: NonFinite = "skip",
    ) -> None:
        if nonfinite not in get_args(NonFinite):
            raise ValueError(f"nonfinite={nonfinite!r} is none of {', '.join(map(repr, get_args(NonFinite)))}")
        self.skipped = 0
        self._optimizer = optimizer
        self._before, self._after = before, after
        self._save, self._load, self._key = save, load, key
        self._nonfinite = nonfinite
        self._in_a_row = 0
        self._skip = False
        self._handles: list[RemovableHandle] = [
            *register_step_hooks(optimizer, self._before_step, self._after_step),
            optimizer.register_state_dict_post_hook(self._save_state),
            optimizer.register_load_state_dict_pre_hook(self._load_state),
        ]

    def remove(self) -> None:
        """Take everything off the optimizer."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            self._guard()
            return None

        def guarded() -> Any:
            # The gradients of this step exist only once the closure has run.
            with torch.enable_grad():
                loss = closure()
            self._guard()
            return loss

        return ((args[0], guarded, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": guarded})

    def _guard(self) -> None:
        found_inf = getattr(self._optimizer, "found_inf", None)
        if found_inf is not None:
            # A fused optimizer under a gradient scaler leaves the weights alone by itself.
            self._skip = bool(found_inf.item())
        else:
            self._skip = self._nonfinite != "unchecked" and not _finite(self._gradients())
        if not self._skip:
            self._in_a_row = 0
            self._before()
        elif found_inf is None:
            self._refuse()

    def _refuse(self) -> None:
        """Take the gradients of a step away, or the step itself."""
        self._in_a_row += 1
        what = "the gradients of this step hold NaN or infinite values"
        if self._nonfinite == "raise":
            self._skip = False
            raise FloatingPointError(f"{what}; nothing was changed")
        if self._in_a_row >= _PATIENCE:
            raise FloatingPointError(f"{what}, as did those of the {_PATIENCE - 1} steps before: training has diverged")
        self.skipped += 1
        warnings.warn(f"{what}: it is skipped, weights and masks stay as they are", stacklevel=4)
        for parameter in self._parameters():
            parameter.grad = None

    def _parameters(self) -> Iterator[Tensor]:
        for group in self._optimizer.param_groups:
            yield from group["params"]

    def _gradients(self) -> list[Tensor]:
        grads = [p.grad for p in self._parameters() if p.grad is not None]
        return [g.coalesce().values() if g.is_sparse else g for g in grads if g.numel()]

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        skip, self._skip = self._skip, False
        if not skip:
            self._after()

    def _save_state(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        state_dict.setdefault(_STATE_KEY, {})[self._key] = self._save()

    def _load_state(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        states = state_dict.get(_STATE_KEY, {})
        if self._key in states:
            self._load(states[self._key])


def _finite(gradients: list[Tensor]) -> bool:
    if not gradients:
        return True
    # The l2 norm is found twenty times as fast as the largest size, but overflows for large gradients that are finite.
    norms = (torch.nn.utils.get_total_norm(gradients, norm_type=norm) for norm in (2.0, math.inf))
    return any(math.isfinite(float(norm)) for norm in norms)
