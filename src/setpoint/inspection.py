"""What a model holds now, beside what a run left in it: parameters may have been loaded, replaced or written since."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from setpoint.functional.bits import Mask
from setpoint.functional.entries import count_nonzero, zero_entries
from setpoint.reading import read
from setpoint.units import Layer, plain_name

_Words = dict[str, str]

# One in so many kept weights may be zero at a moment, in low precision, as it passes through zero in training.
_PASSING = 1000

# What to do about differences.
APPLY = "sparsifier.apply() sets what the run has pruned to zero again"


@dataclass(frozen=True)
class Inspection:
    """A run's layers as the model has them now.

    Attributes:
        layers: with the model's present parameters; in the place of one that is gone, ones, so that it counts as dense.
        kept: by layer, which units are there.
        differences: by parameter name, what the model holds that the run did not leave in it.
        detached: by parameter name, why the optimizers of the run do not train it any more.
    """

    layers: tuple[Layer, ...]
    kept: tuple[Tensor, ...]
    differences: dict[str, str]
    detached: dict[str, str]


@torch.no_grad()
def inspect(
    model: nn.Module,
    layers: Sequence[Layer],
    pruned: Mapping[str, Mask],
    kept: Sequence[Tensor],
    empty: Sequence[Tensor],
    alive: Callable[[int, Layer], Tensor],
) -> Inspection:
    """Look at the parameters that a model has now, under the names that a run knows.

    Args:
        model: the run's, unwrapped.
        layers: the run's.
        pruned: by parameter, True where an entry must be zero.
        kept: by layer, the units of the support; none before it is known.
        empty: by layer, the numbers of their parts that were zero when the run left them; none where kept units may be
            zero, as weights are that have just grown.
        alive: which units of a layer are there by its entries, given its number.
    """
    now, lost, replaced = _present(model, layers)
    differences = lost | _not_finite(now) | _not_zero(now, pruned, skip=lost)
    there = tuple(_with(layer, now) for layer in layers)
    units: list[Tensor] = []
    for i, layer in enumerate(there):
        sound = kept and not any(part.name in differences for part in layer.parts)
        emptied = _emptied(layer, kept[i], empty[i]) if sound and empty else {}
        differences |= emptied
        units.append(kept[i] if sound and not emptied else alive(i, layer))
    return Inspection(there, tuple(units), differences, lost | replaced)


def _emptied(layer: Layer, kept: Tensor, empty: Tensor) -> _Words:
    """The parameters in which kept units have become all zero, unless these are a few that pass through zero."""
    missing = kept & layer.blank()
    missing.view(-1)[empty] = False
    stays = int(count_nonzero(kept))
    if int(count_nonzero(missing.any(0))) * _PASSING <= stays:
        return {}
    counts = read([count_nonzero(units) for units in missing])
    return {
        part.name: f"{int(count):,} of the {stays:,} units that the run has kept are zero in it, and were not when it "
        "left them"
        for part, count in zip(layer.acted_on, counts)
        if count
    }


def listed(differences: Mapping[str, str], most: int = 4) -> str:
    """Differences in one sentence, the first of them in full."""
    shown = "; ".join(f"{name}: {what}" for name, what in list(differences.items())[:most])
    return shown if len(differences) <= most else f"{shown}; and {len(differences) - most} more"


def zero(model: nn.Module, pruned: Mapping[str, Mask]) -> None:
    """Set the pruned entries of a model's parameters to zero.

    Args:
        model: any that holds the parameters under the run's names, or that wraps such a model (an average of weights).
        pruned: by parameter, True where an entry must be zero.

    Raises:
        ValueError: naming a parameter that the model does not have in that shape; nothing is changed then.
    """
    with torch.no_grad():
        for name, parameter in find_parameters(model, {name: mask.shape for name, mask in pruned.items()}).items():
            zero_entries(parameter, pruned[name])


def present(model: nn.Module, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers of a run with the parameters that its model has now; ones in the place of those that are gone."""
    now, _, _ = _present(model, layers)
    return tuple(_with(layer, now) for layer in layers)


def find_parameters(model: nn.Module, shapes: Mapping[str, torch.Size]) -> dict[str, nn.Parameter]:
    """The parameters of some names and shapes, in a model or in one that it wraps.

    Raises:
        TypeError: for what is no model.
        ValueError: naming one that is missing.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"expected a model that holds the run's parameters, a torch.nn.Module, not {type(model).__name__}"
        )
    for module in model.modules():
        there = _by_name(module)
        if all(name in there and there[name].shape == shape for name, shape in shapes.items()):
            return {name: there[name] for name in shapes}
    own = _by_name(model)
    name, shape = next((n, s) for n, s in shapes.items() if n not in own or own[n].shape != s)
    found = f"has shape {tuple(own[name].shape)}" if name in own else "is missing"
    raise ValueError(
        f"{type(model).__name__} is no copy of the run's model: its parameter {name!r} {found}, where the run's has "
        f"shape {tuple(shape)}"
    )


def _by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    return {plain_name(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)}


def _present(model: nn.Module, layers: Sequence[Layer]) -> tuple[dict[str, nn.Parameter], _Words, _Words]:
    """The tensors to count in by name; which of the run's are not in the model, and which are others now."""
    there = _by_name(model)
    held = {id(parameter) for parameter in there.values()}
    now: dict[str, nn.Parameter] = {}
    lost: dict[str, str] = {}
    replaced: dict[str, str] = {}
    for part in (part for layer in layers for part in layer.parts):
        own = part.parameter
        # A module may have moved to another place in the model, with its parameters.
        found = own if id(own) in held else there.get(part.name)
        if found is not None and found.shape == own.shape:
            now[part.name] = found
            if found is not own:
                replaced[part.name] = "another tensor is in its place, which the run's optimizer does not train"
            continue
        now[part.name] = nn.Parameter(torch.ones((), device=own.device, dtype=own.dtype).expand(own.shape))
        lost[part.name] = (
            "the model has no parameter of this name any more"
            if found is None
            else f"it was replaced by one of shape {tuple(found.shape)}, where the run's has {tuple(own.shape)}"
        )
    return now, lost, replaced


def _with(layer: Layer, now: Mapping[str, nn.Parameter]) -> Layer:
    if all(part.parameter is now[part.name] for part in layer.parts):
        return layer
    return replace(layer, parts=tuple(replace(part, parameter=now[part.name]) for part in layer.parts))


def _not_finite(now: Mapping[str, Tensor]) -> dict[str, str]:
    # Sums in float64 are finite where the entries are, or as good as; where they are not, the entries are looked at.
    sums = dict(zip(now, read([tensor.sum(dtype=torch.float64) for tensor in now.values()])))
    return {
        name: "it holds NaN or infinite values"
        for name, tensor in now.items()
        if not math.isfinite(sums[name]) and not bool(torch.isfinite(tensor).all())
    }


def _not_zero(now: Mapping[str, Tensor], pruned: Mapping[str, Mask], skip: Mapping[str, str]) -> dict[str, str]:
    names = [name for name in pruned if name not in skip]
    counts = read([count_nonzero((now[n] != 0) & pruned[n].view().to(now[n].device)) for n in names])
    return {
        name: f"{int(count):,} of its {int(pruned[name].count()):,} pruned entries are not zero: weights were loaded, "
        "averaged or written since"
        for name, count in zip(names, counts)
        if count
    }
