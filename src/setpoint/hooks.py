"""What hangs on optimizers: seeing each step that really happens."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from setpoint.functional.bits import Mask
from setpoint.functional.entries import writable, zero_finite_entries
from setpoint.optimizer_set import OptimizerSet
from setpoint.optimizers import checked_optimizer, register_step_hooks

NonFinite = Literal["skip", "raise", "unchecked"]
# So many steps in a row without one finite gradient are no accident of a loss scale.
_PATIENCE = 100
# In torch.distributed.checkpoint.state_dict.
_MAKES_STATE = "_init_optim_state"


class StepHooks:
    """Tells of every optimizer step that was taken, and not of those that were skipped.

    A step is skipped where gradients hold NaN or infinite values: by a gradient scaler (which then does not step, or
    hands `found_inf` to a fused optimizer), and otherwise here, by taking the gradients away, so that the optimizer
    touches neither weights nor its own state. A step that cannot move anything, by which
    `torch.distributed.checkpoint` has optimizers make their state, is no step of the run.

    Of several optimizers, a step of the run is complete when each of them has taken one; each is skipped for its own
    gradients.

    Args:
        optimizers: those that `setpoint.optimizers.checked_optimizer` has let through.
        begin: called before the first optimizer's step of each step of the run that will be taken, its gradients being
            ready.
        before: called before each optimizer's step that will be taken, with the ids of the parameters whose gradients
            have been masked already.
        between: called after an optimizer's step, when others are still to take theirs.
        after: called after each step of the run.
        nonfinite: `"skip"` as said, with a warning; `"raise"` refuses the step with FloatingPointError; `"unchecked"`
            does not look at gradients, which takes a pass over them and, on a GPU, waits for them.
        masking: which entries of a parameter's gradient will be masked in `before`, if it is known already: this is
            then done where the gradients are looked at, in the same pass.

    Raises:
        ValueError: for another value of `nonfinite`.
    """

    def __init__(
        self,
        optimizers: OptimizerSet,
        *,
        begin: Callable[[], None],
        before: Callable[[Collection[int]], None],
        between: Callable[[], None],
        after: Callable[[], None],
        nonfinite: NonFinite = "skip",
        masking: Callable[[Tensor], Mask | None] = lambda parameter: None,
    ) -> None:
        if nonfinite not in get_args(NonFinite):
            raise ValueError(f"nonfinite={nonfinite!r} is none of {', '.join(map(repr, get_args(NonFinite)))}")
        self.skipped = 0
        self._optimizers = optimizers
        self._begin, self._before, self._between, self._after = begin, before, between, after
        self._nonfinite, self._masking = nonfinite, masking
        self._masked: set[int] = set()
        self._in_a_row = 0
        # Whether the step that an optimizer is about to take counts for nothing.
        self._skip = False
        # Those that have taken their part of the present step of the run.
        self._done: set[int] = set()
        self._handles: list[RemovableHandle] = []
        for optimizer in optimizers:
            self._handles += register_step_hooks(optimizer, self._before_step, self._after_step)

    def remove(self) -> None:
        """Take everything off the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            self._guard(optimizer)
            return None

        def guarded() -> Any:
            # The gradients of this step exist only once the closure has run.
            with torch.enable_grad():
                loss = closure()
            self._guard(optimizer)
            return loss

        return ((args[0], guarded, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": guarded})

    def _guard(self, optimizer: Optimizer) -> None:
        # Of a step that was refused some may be left.
        self._masked = set()
        self._skip = _makes_state_only(optimizer)
        if self._skip:
            return
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None:
            # A fused optimizer under a gradient scaler leaves the weights alone by itself.
            self._skip = bool(found_inf.item())
        else:
            self._skip = self._nonfinite != "unchecked" and not self._all_finite(optimizer)
        if not self._skip:
            self._take(optimizer)
        elif found_inf is None:
            self._refuse(optimizer)

    def _all_finite(self, optimizer: Optimizer) -> bool:
        """Whether all gradients are finite; some of them masked on the way, where nobody is to see them otherwise."""
        finite = True
        # A step that is refused leaves everything as it was.
        for parameter in _parameters(optimizer) if self._nonfinite == "skip" else ():
            gradient, mask = parameter.grad, self._masking(parameter)
            plain = gradient is not None and not gradient.is_sparse and not gradient.requires_grad
            if mask is not None and gradient is not None and plain and writable(gradient) and mask.packs:
                finite &= zero_finite_entries(gradient, mask)
                self._masked.add(id(parameter))
        return finite and _finite(_gradients(p for p in _parameters(optimizer) if id(p) not in self._masked))

    def _take(self, optimizer: Optimizer) -> None:
        self._in_a_row = 0
        if not self._done or id(optimizer) in self._done:
            self._done = set()
            self._begin()
        self._before(self._masked)

    def _refuse(self, optimizer: Optimizer) -> None:
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
        for parameter in _parameters(optimizer):
            parameter.grad = None

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        skip, self._skip = self._skip, False
        if skip:
            return
        self._done.add(id(optimizer))
        if len(self._done) < len(self._optimizers):
            self._between()
            return
        self._done = set()
        self._after()


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    grads = [p.grad for p in parameters if p.grad is not None]
    return [g.coalesce().values() if g.is_sparse else g for g in grads if g.numel()]


def _makes_state_only(optimizer: Optimizer) -> bool:
    """Whether this is the step, of learning rate zero, by which torch has an optimizer make its state."""
    if optimizer.state or not all("lr" in group and float(group["lr"]) == 0.0 for group in optimizer.param_groups):
        return False
    # A user's own step may look the same: in a warm-up, of a model without gradients.
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_name != _MAKES_STATE:
        frame = frame.f_back
    return frame.f_code.co_name == _MAKES_STATE


def checked_optimizers(given: Optimizer | Sequence[Optimizer]) -> OptimizerSet:
    """One optimizer, or several that train one model.

    Raises:
        TypeError: for what is no optimizer.
        ValueError: for one that moves the weights many times within one step, and for a parameter of two.
    """
    several: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
    return OptimizerSet([checked_optimizer(optimizer) for optimizer in several])


def _finite(gradients: list[Tensor]) -> bool:
    if not gradients:
        return True
    # The l2 norm is found twenty times as fast as the largest size, but overflows for large gradients that are finite.
    norms = (torch.nn.utils.get_total_norm(gradients, norm_type=norm) for norm in (2.0, math.inf))
    return any(math.isfinite(float(norm)) for norm in norms)
