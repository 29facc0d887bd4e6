"""First weights for what a transformation made anew."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Drawn:
    """How a tensor was drawn: as one value all over, or with this mean and deviation."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, tensor: Tensor) -> Drawn:
        """Of a tensor's entries; one on the meta device has none, and counts as normal."""
        if tensor.is_meta or not tensor.is_floating_point():
            return cls(0.0, 1.0)
        values = tensor.detach().double()
        if bool((values == values.flatten()[0]).all()):
            return cls(float(values.flatten()[0]), 0.0)
        return cls(float(values.mean()), float(values.std(correction=0)))


def how_drawn(model: nn.Module) -> dict[str, Drawn]:
    """How each parameter and buffer of a model was drawn, by name."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: Drawn.of(tensor) for name, tensor in tensors.items() if tensor.numel()}


@torch.no_grad()
def draw_anew(model: nn.Module, names: Collection[str], drawn: dict[str, Drawn]) -> None:
    """Give tensors first weights for their sizes.

    Modules that hold one of them, or have such a module inside, draw by their own `reset_parameters`, the outermost
    last. What was one value all over, such as a norm's scale or a bias of zeros, gets that value again. A parameter
    that no module draws is drawn from a normal distribution of the mean and deviation that it had; a buffer stays.

    Args:
        model: changed in place.
        names: of the tensors.
        drawn: how they were drawn before.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    versions = {name: tensors[name]._version for name in names}
    reset_owners(model, {name.rpartition(".")[0] for name in names})
    for name in names:
        tensor, before = tensors[name], drawn[name]
        if before.deviation == 0.0:
            tensor.fill_(before.mean)
        elif isinstance(tensor, nn.Parameter) and tensor._version == versions[name]:
            tensor.normal_(before.mean, before.deviation)


@torch.no_grad()
def reset_owners(model: nn.Module, paths: Collection[str]) -> None:
    """Call `reset_parameters` of the modules at these paths and of all that they lie in, the outermost last."""
    for path, module in reversed(list(model.named_modules())):
        reset = getattr(module, "reset_parameters", None)
        inside = not path or any(p == path or p.startswith(f"{path}.") for p in paths)
        if callable(reset) and inside:
            reset()


def fresh_copy(module: nn.Module) -> nn.Module:
    """A copy with first weights of its own."""
    made = copy.deepcopy(module)
    draw_anew(made, list(how_drawn(made)), how_drawn(made))
    return made
