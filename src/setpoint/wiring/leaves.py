"""Modules whose inside is not looked into: what passes through them, and their parameters, keep their sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn import functional

_OPAQUE: dict[str, str] = {}
# Functions of torch that check sizes where that cannot be watched, by the module that they belong to.
FUNCTIONS: dict[Callable[..., Any], str] = {functional.multi_head_attention_forward: "MultiheadAttention"}


def register_leaf(class_name: str, reason: str) -> None:
    """Refuse to change any axis that a class of modules touches, or a class derived from it.

    Most modules need no such entry: sizes that they read from their own integer attributes are followed.

    Args:
        class_name: the last part of the class's name.
        reason: in words that complete "cannot change, because ...".
    """
    _OPAQUE[class_name] = reason


def opaque_reason(class_name: str) -> str | None:
    """Why the axes that this class touches are refused, if they are."""
    return f"{class_name}: {_OPAQUE[class_name]}" if class_name in _OPAQUE else None


def opaque_modules(model: nn.Module) -> dict[str, str]:
    """The paths of a model's leaves, with their reasons."""
    found: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        reasons = (opaque_reason(kind.__name__) for kind in type(module).__mro__)
        if (reason := next(filter(None, reasons), None)) is not None:
            found[path] = reason
    return found


register_leaf(
    "MultiheadAttention",
    "its heads times their width must be the width of its input, so no head can go alone; possible: the neurons beside "
    "it, and heads of attention that is written with linear layers and scaled_dot_product_attention",
)
register_leaf(
    "ParametrizationList",
    "a parametrization computes the weight, whose zeros need not be those of its parameters; possible: call "
    "torch.nn.utils.parametrize.remove_parametrizations first",
)
