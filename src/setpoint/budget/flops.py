"""Floating-point operations of a forward pass, by the parameter that they multiply with."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from setpoint.budget.whole import WholeCost, parameter_sizes
from setpoint.units import Layer, plain_name
from setpoint.wiring import Wiring


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts as `torch.utils.flop_counter` does, and remembers for which parameter."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = names
        self.by_parameter: dict[str, int] = defaultdict(int)
        self.rest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
        out = func(*args, **kwargs)
        if formula is not None:
            self._note(int(formula(*args, **kwargs, out_val=out)), _pytree.tree_leaves((args, kwargs)))
        return out

    def _note(self, flops: int, inputs: Sequence[Any]) -> None:
        # What is multiplied with, not the bias that is added.
        factors = [(i.numel(), i.untyped_storage()._cdata) for i in inputs if isinstance(i, Tensor)]
        name = next((self._names[s] for _, s in sorted(factors, reverse=True) if s in self._names), None)
        if name is None:
            self.rest += flops
        else:
            self.by_parameter[name] += flops


@torch.no_grad()
def count_flops(model: nn.Module, example_inputs: Any) -> tuple[dict[str, int], int]:
    """Operations of one forward pass in evaluation mode, a multiplication and an addition counting two.

    Counted on the meta device, so that nothing is computed and attention is counted as well.

    Args:
        model: not changed.
        example_inputs: a tensor, or a tuple of arguments.

    Returns:
        By the name of the weight that is multiplied with; and those between activations, as in attention.
    """
    twin = copy.deepcopy(model).to("meta").eval()
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    inputs = _pytree.tree_map_only(Tensor, lambda t: t.to("meta"), inputs)
    counter = _Counter({p.untyped_storage()._cdata: name for name, p in twin.named_parameters()})
    with counter:
        twin(*inputs)
    return dict(counter.by_parameter), counter.rest


def flops_per_entry(model: nn.Module, layers: Sequence[Layer], example_inputs: Any) -> dict[str, float]:
    """By layer, the operations that one entry of its parameter takes part in.

    Args:
        model: not changed.
        layers: of one parameter each.
        example_inputs: what one forward pass is; its batch counts.
    """
    by_parameter, _ = count_flops(model, example_inputs)
    plain = {plain_name(name): flops for name, flops in by_parameter.items()}
    return {layer.name: plain.get(layer.name, 0) / layer.parts[0].parameter.numel() for layer in layers}


def flops_of_widths(model: nn.Module, wiring: Wiring, groups: Sequence[str], example_inputs: Any) -> WholeCost:
    """Operations of a forward pass by the number of units that stay in each group.

    Those of a weight are in proportion to its size. Those between activations are in proportion to the units of one
    group each (attention's to its heads), which is measured group by group.

    Args:
        model: that the wiring was derived from.
        wiring: its axes.
        groups: names of the groups whose widths change, in the order in which widths are given.
        example_inputs: what one forward pass is; its batch counts.
    """
    by_parameter, rest = count_flops(model, example_inputs)
    fixed, changing = parameter_sizes(model, wiring, groups)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    constant = float(sum(flops for name, flops in by_parameter.items() if name in fixed))
    moving = [(by_parameter[name] / sizes[name], size) for name, size in changing.items() if name in by_parameter]
    slopes = _slopes(model, wiring, groups, example_inputs, rest) if rest else [0.0] * len(groups)
    full = [wiring[name].size for name in groups]

    def cost(widths: Sequence[int]) -> float:
        by_name = dict(zip(groups, widths))
        between = rest - sum(slope * (n - width) for slope, n, width in zip(slopes, full, widths))
        return constant + between + sum(each * size(by_name) for each, size in moving)

    return cost


def _slopes(model: nn.Module, wiring: Wiring, groups: Sequence[str], inputs: Any, rest: int) -> list[float]:
    """What one unit of each group adds to the operations between activations."""
    slopes = []
    for name in groups:
        size = wiring[name].size
        twin = copy.deepcopy(model).to("meta")
        wiring.resize(twin, {name: torch.arange(size - 1) if size > 1 else torch.arange(1)})
        slopes.append(float(rest - count_flops(twin, inputs)[1]))
    return slopes
