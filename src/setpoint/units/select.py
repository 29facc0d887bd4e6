"""Which parameters of a model are made sparse, and into which units they fall."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from setpoint.optimizer_set import OptimizerSet
from setpoint.units.kinds import Unit, partition, unit_name
from setpoint.units.layer import Layer, Part
from setpoint.units.layout import Layout
from setpoint.units.names import plain_name

Patterns = str | Iterable[str] | None


@dataclass(frozen=True)
class Selection:
    """The layers chosen, and why others that might have been were left dense."""

    layers: tuple[Layer, ...]
    left: dict[str, str]


def select(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | OptimizerSet,
    unit: Unit,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Selection:
    """Choose the parameters to make sparse.

    By default the weights of all Linear and convolution layers that are being trained; never biases, norms and
    embeddings. A parameter shared by several modules is taken once, under its first name; one that is also an
    embedding's is left. Globs of `include` and `exclude` choose among these by parameter name (any of its names);
    a full name in `include` adds a parameter of any other kind, such as an embedding.

    Args:
        model: its parameters' names are what the globs are matched against, without the prefixes of wrappers.
        optimizer: must hold every parameter chosen.
        unit: what the parameters are divided into; those that have no such units are left.
        include: glob or globs, or full names.
        exclude: glob or globs.

    Raises:
        ValueError: if a pattern matches nothing, if a parameter named in full cannot be taken, if nothing is left to
            take, or if a chosen parameter is not held by the optimizer, not floating point, or not finite.
    """
    names = _names(model)
    owners = _owners(model)
    included, excluded = patterns(include), patterns(exclude)
    literal = {p: parameter for p in included or () for parameter, all_names in names.items() if p in all_names}
    candidates = {p: reason for p in names if (reason := _refusal(p, owners.get(p, []))) is not _NOT_MEANT}
    for parameter in literal.values():
        candidates[parameter] = None if parameter.requires_grad else _FROZEN
    _check_patterns("include", included, [names[p] for p in candidates], names)
    _check_patterns("exclude", excluded, list(names.values()), names)

    held = {p for group in optimizer.param_groups for p in group["params"]}
    layers: list[Layer] = []
    left: dict[str, str] = {}
    for parameter, reason in candidates.items():
        aliases = names[parameter]
        if included is not None and not matches(aliases, included):
            continue
        if excluded is not None and matches(aliases, excluded):
            continue
        layout = Layout.of(next(iter(owners.get(parameter, [])), None), parameter)
        units = partition(unit, layout) if reason is None else None
        if reason is None and units is None:
            reason = f"its shape {layout.shape} has no units of kind {unit_name(unit)!r}"
        if reason is not None or units is None:
            if parameter in literal.values():
                raise ValueError(f"parameter {aliases[0]!r} was asked for by name, but {reason}")
            left[aliases[0]] = reason or ""
            continue
        _check_parameter(aliases[0], parameter, held)
        layers.append(Layer(aliases[0], (Part(aliases[0], parameter, units),)))
    if not layers:
        raise ValueError(_nothing_left(unit, left))
    return Selection(tuple(layers), left)


_NOT_MEANT = "it is no weight of a Linear or convolution layer"
_FROZEN = "it is frozen (requires_grad is False)"


def _names(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """All names of each parameter, the first first."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(plain_name(name))
    return names


def _owners(model: nn.Module) -> dict[nn.Parameter, list[nn.Module]]:
    """The modules that hold each parameter as their `weight`."""
    owners: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            owners.setdefault(weight, []).append(module)
    return owners


def _refusal(parameter: nn.Parameter, owners: Sequence[nn.Module]) -> str | None:
    """Why a parameter is not made sparse by default, None if it is."""
    if not any(isinstance(m, nn.Linear | _ConvNd) for m in owners):
        return _NOT_MEANT
    if any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in owners):
        return "it is shared with an embedding"
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return "it has no shape before the model's first forward pass"
    return None if parameter.requires_grad else _FROZEN


def patterns(given: Patterns) -> list[str] | None:
    """Globs as a list; None for none."""
    if given is None:
        return None
    return [given] if isinstance(given, str) else list(given)


def matches(names: Iterable[str], globs: Iterable[str]) -> bool:
    """Whether any of the globs fits any of the names."""
    return any(fnmatchcase(name, glob) for name in names for glob in globs)


def _check_patterns(
    argument: str,
    patterns: list[str] | None,
    candidates: list[list[str]],
    names: dict[nn.Parameter, list[str]],
) -> None:
    for pattern in patterns or ():
        if any(matches(aliases, [pattern]) for aliases in candidates):
            continue
        possible = ", ".join(aliases[0] for aliases in candidates) or "none"
        others = any(matches(aliases, [pattern]) for aliases in names.values())
        why = "no weight of a Linear or convolution layer (name other parameters in full)" if others else "nothing"
        raise ValueError(f"{argument}={pattern!r} matches {why}; possible: {possible}")


def _check_parameter(name: str, parameter: Tensor, held: set[Tensor]) -> None:
    if parameter not in held:
        raise ValueError(f"parameter {name!r} is not held by the optimizer: add it there, or leave it out by exclude=")
    if not parameter.is_floating_point():
        raise ValueError(
            f"parameter {name!r} has dtype {parameter.dtype}; only real floating dtypes can be made sparse"
        )
    if not bool(torch.isfinite(parameter).all()):
        raise ValueError(f"parameter {name!r} holds NaN or infinite values")


def _nothing_left(unit: Unit, left: dict[str, str]) -> str:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in left.items())
    what = f"no parameter can be divided into units of kind {unit_name(unit)!r}"
    return f"{what} ({reasons})" if reasons else f"{what}: the model has no trainable Linear or convolution weight"
