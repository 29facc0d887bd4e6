"""Changing a model's sizes in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from setpoint.wiring.layouts import Selections
from setpoint.wiring.modules import describe_sizes

if TYPE_CHECKING:
    from setpoint.wiring.wiring import Attribute, Wiring


def resize(model: nn.Module, wiring: Wiring, selections: Selections) -> None:
    """Select units in all tensors that hold them, and have attributes follow. See `Wiring.resize`."""
    selections = {name: s.detach().to("cpu", torch.long) for name, s in selections.items()}
    holders = _holders(model)
    changed = {name: found for name in wiring.layouts if (found := _changed(model, wiring, name, selections))}
    attributes = [(model.get_submodule(a.module), a, a.layout.new_size(selections)) for a in wiring.attributes]
    for old, new in changed.values():
        for module, name in holders[id(old)]:
            held: dict[str, Any] = module._parameters if isinstance(old, nn.Parameter) else module._buffers
            held[name] = new
    for module, attribute, size in attributes:
        _assign(module, attribute, size)
    for module in {id(m): m for old, _ in changed.values() for m, _ in holders[id(old)]}.values():
        describe_sizes(module)


def _holders(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    holders.setdefault(id(tensor), []).append((module, name))
    return holders


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its name.

    Raises:
        ValueError: if the model has none.
    """
    path, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"the wiring knows {name!r}, which this model does not have") from error
    found = module._parameters.get(leaf, module._buffers.get(leaf))
    if found is None:
        raise ValueError(f"the wiring knows {name!r}, which this model does not have")
    return found


def _changed(model: nn.Module, wiring: Wiring, name: str, selections: Selections) -> tuple[Tensor, Tensor] | None:
    """A tensor and what becomes of it; None if it stays as it is."""
    layouts = wiring.layouts[name]
    old = tensor_of(model, name)
    if tuple(old.shape) != tuple(layout.size for layout in layouts):
        sizes = tuple(layout.size for layout in layouts)
        raise ValueError(f"{name!r} has shape {tuple(old.shape)}; the wiring was derived from a model with {sizes}")
    new = old.detach()
    for axis, layout in enumerate(layouts):
        if any(group in selections for group in layout.groups):
            new = new.index_select(axis, layout.positions(selections).to(old.device))
    return None if new.data_ptr() == old.data_ptr() and new.shape == old.shape else (old, _like(new, old))


def _like(new: Tensor, old: Tensor) -> Tensor:
    for memory_format, rank in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if old.dim() == rank and not old.is_contiguous() and old.is_contiguous(memory_format=memory_format):
            new = new.contiguous(memory_format=memory_format)
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def _assign(module: nn.Module, attribute: Attribute, size: int) -> None:
    if attribute.position is None:
        setattr(module, attribute.name, size)
        return
    value = getattr(module, attribute.name)
    entries = list(value)
    entries[attribute.position] = size
    setattr(module, attribute.name, type(value)(entries))
