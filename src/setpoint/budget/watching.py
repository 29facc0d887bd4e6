"""Watching the operators of a forward pass, where possible without computing anything."""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from setpoint.inputs import call_arguments
from setpoint.meta import without_values

_logger = logging.getLogger(__name__)


class OperatorWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator of a forward pass, composite ones taken apart as `torch.utils.flop_counter` does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:
                parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
        out = func(*args, **kwargs)
        flops = None if formula is None else int(formula(*args, **kwargs, out_val=out))
        self.saw(func, _tensors((args, kwargs)), _tensors(out), flops)
        return out

    def saw(self, func: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor], flops: int | None) -> None:
        """Take note of an operator.

        Args:
            func: the operator.
            inputs: all tensors among its arguments.
            outputs: its results.
            flops: its operations; None if it is no product.
        """
        raise NotImplementedError


class FlopCount(OperatorWatch):
    """Counts operations by the parameter that they multiply with.

    Attributes:
        by_parameter: by the name of the weight.
        by_piece: the same by the part of the weight: where it begins in memory, and how many entries it has.
        rest: between activations.
    """

    def __init__(self, twin: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {storage(p): name for name, p in twin.named_parameters()}
        self.by_parameter: dict[str, int] = defaultdict(int)
        self.by_piece: dict[str, dict[tuple[int, int], int]] = defaultdict(lambda: defaultdict(int))
        self.rest = 0

    def saw(self, func: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor], flops: int | None) -> None:
        """Add an operator's operations."""
        if flops is None:
            return
        # What is multiplied with, not the bias that is added, which is as large where a layer has one input.
        known = (i for i in inputs if storage(i) in self._names)
        weight = max(known, key=lambda i: (i.ndim > 1, i.numel()), default=None)
        if weight is None:
            self.rest += flops
            return
        name = self._names[storage(weight)]
        self.by_parameter[name] += flops
        self.by_piece[name][int(weight.storage_offset()), weight.numel()] += flops


def storage(tensor: Tensor) -> int:
    """What tells tensors apart that are no views of one another, as long as they live."""
    return int(tensor.untyped_storage()._cdata)


def _tensors(nested: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(nested) if isinstance(leaf, Tensor)]


Watch = TypeVar("Watch", bound=OperatorWatch)


@torch.no_grad()
def watch_forward(model: nn.Module, example_inputs: Any, watch: Callable[[nn.Module], Watch]) -> tuple[Watch, Any]:
    """Run a copy of a model in evaluation mode and watch its operators.

    On the meta device, where nothing is computed. A forward pass that looks at the values of tensors needs them, and is
    run where the model is.

    Args:
        model: not changed.
        example_inputs: a tensor, a tuple of arguments, or a dict of them by name.
        watch: makes the watch for the copy.

    Returns:
        The watch, and what the copy answered.
    """

    def run(twin: nn.Module, inputs: Any) -> tuple[Watch, Any]:
        args, kwargs = call_arguments(inputs)
        with watch(twin.eval()) as watching:
            return watching, twin(*args, **kwargs)

    try:
        with without_values(model, example_inputs) as (twin, inputs):
            return run(twin, inputs)
    except RuntimeError as error:
        _logger.debug("on the meta device", exc_info=error)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    # Fused attention is counted on some devices only, and is the same products.
    with sdpa_kernel(SDPBackend.MATH):
        return run(copy.deepcopy(model), _pytree.tree_map_only(Tensor, lambda t: t.to(device), example_inputs))
