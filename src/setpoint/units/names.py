"""The user's own model and names, without the traces of wrappers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile` and `DistributedDataParallel`, whose parameters carry the plain names."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def plain_name(name: str) -> str:
    """A parameter's name without the traces of submodules that were compiled on their own."""
    return name.replace("_orig_mod.", "")


def named_matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of two or more dimensions, by plain name: what could be made sparse."""
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, nn.parameter.UninitializedParameter) and parameter.ndim >= 2:
            yield plain_name(name), parameter
