"""Layers replaced by several, in place: which of them, and by what."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from setpoint.transforms.doped import Doped
from setpoint.transforms.factorized import Factorized
from setpoint.transforms.flow import Flow
from setpoint.transforms.initialise import reset_owners
from setpoint.transforms.inner import Inner
from setpoint.transforms.layers import fans, is_replaceable
from setpoint.transforms.parallel import Parallel
from setpoint.transforms.patterns import Chosen
from setpoint.transforms.sizes import doped_rank, factorized_rank, parallel_branches

SwapKind = Literal["parallel", "factorized", "doped"]


@dataclass(frozen=True)
class _Candidate:
    """A layer by its first path and that of its weight, with all paths at which the model holds it."""

    path: str
    weight: str
    paths: tuple[str, ...]
    module: nn.Module

    @property
    def names(self) -> tuple[str, ...]:
        """All names that a pattern may give."""
        return (*self.paths, *(f"{path}.weight".removeprefix(".") for path in self.paths))


def swap(
    model: nn.Module,
    kind: SwapKind,
    sparsity: float,
    flow: Flow,
    flops: Mapping[str, int],
    chosen: Chosen,
    inner: Inner,
) -> tuple[list[str], dict[str, str]]:
    """Replace the layers between the first and the last, in place.

    Args:
        model: to be changed.
        kind: by what.
        sparsity: that is to be spent.
        flow: through the model.
        flops: of its weights.
        chosen: which of its layers.
        inner: of factorized and parallel layers.

    Returns:
        Names of the weights that are to be sparse; and of those that were left dense, with the reason.

    Raises:
        ValueError: for layers that cannot be replaced although they were named, and for tied ones.
    """
    candidates = list(_candidates(model))
    chosen.check({c.weight: c.names for c in candidates})
    left: dict[str, str] = {}
    taken: list[_Candidate] = []
    for candidate in candidates:
        if not chosen.takes(*candidate.names):
            continue
        named = chosen.names(*candidate.names)
        reason = _refusal(candidate, kind, flow, flops) or ("" if named else _place(candidate.weight, flow))
        if reason and named:
            raise ValueError(f"layer {candidate.path!r} was asked for by name, but {reason}")
        if reason:
            left[candidate.weight] = reason
        else:
            taken.append(candidate)
    _check_ties(model, taken)
    sparse = [name for c in taken for name in _replace(model, c, kind, sparsity, flow.norms.get(c.path), inner)]
    reset_owners(model, {c.path.rpartition(".")[0] for c in taken})
    return sparse, left


def _candidates(model: nn.Module) -> Iterator[_Candidate]:
    paths: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or is_replaceable(module):
            paths.setdefault(module, []).append(path)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for module, found in paths.items():
        weight = module._parameters.get("weight")
        own = f"{found[0]}.weight".removeprefix(".")
        yield _Candidate(found[0], own if weight is None else names[weight], tuple(found), module)


def _place(weight: str, flow: Flow) -> str:
    if weight in flow.first:
        return "it reads the model's input"
    return "it makes the model's output" if weight in flow.last else ""


def _refusal(candidate: _Candidate, kind: SwapKind, flow: Flow, flops: Mapping[str, int]) -> str:
    """Why a layer cannot be replaced, wherever it stands; empty if it can."""
    module = candidate.module
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed from other parameters"
    if not is_replaceable(module):
        return f"a {type(module).__name__} is not known: Linear and convolutions, not transposed, are possible"
    if candidate.weight in flow.readers:
        return f"its weight is read outside of it, in {flow.readers[candidate.weight] or 'the model itself'!r}"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks, which would be lost"
    if not weight.requires_grad:
        return "it is frozen (requires_grad is False)"
    if not flops.get(candidate.weight):
        return "the example inputs do not pass through it"
    _, fan_out, groups = fans(module)
    if kind != "parallel" and groups > 1 and fan_out == 1:
        return "it is depthwise: between one input and one output there is no rank"
    return ""


def _check_ties(model: nn.Module, taken: Collection[_Candidate]) -> None:
    """Refuse layers whose weight or bias is another module's as well."""
    owners: dict[nn.Parameter, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(parameter, []).append(path)
    for candidate in taken:
        for name, parameter in candidate.module._parameters.items():
            others = [] if parameter is None else [p for p in owners[parameter] if p != candidate.path]
            if others:
                raise ValueError(
                    f"layer {candidate.path!r} shares its {name} with {', '.join(map(repr, others))}, which would be "
                    f"untied: leave it as it is by exclude={candidate.path!r}"
                )


def _replace(
    model: nn.Module, candidate: _Candidate, kind: SwapKind, sparsity: float, norm: str | None, inner: Inner
) -> list[str]:
    made: Parallel | Factorized | Doped
    fan_in, fan_out, _ = fans(candidate.module)
    if kind == "parallel":
        follows = None if norm is None else model.get_submodule(norm)
        made = Parallel(candidate.module, parallel_branches(sparsity), follows, inner)
        if follows is not None:
            put(model, follows, nn.Identity())
    elif kind == "factorized":
        made = Factorized(candidate.module, factorized_rank(fan_in, fan_out, sparsity), inner)
    else:
        rank = doped_rank(fan_in, fan_out, sparsity)
        if rank < 1:
            raise ValueError(
                f"layer {candidate.path!r} with {fan_in} inputs and {fan_out} outputs (of a group) is too small for a "
                f"product of rank 1 at sparsity={sparsity}: leave it as it is by exclude={candidate.path!r}"
            )
        made = Doped(candidate.module, rank)
    put(model, candidate.module, made)
    return [f"{candidate.path}.{name}" for name in made.sparse]


def put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module wherever a model holds another one."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is old:
                module._modules[name] = new
