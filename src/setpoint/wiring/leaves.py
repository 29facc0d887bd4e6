"""Modules whose inside is not looked into: what passes through them, and their parameters, keep their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OPAQUE: dict[str, str] = {}


def register_leaf(class_name: str, reason: str) -> None:
    """Refuse to change any axis that a class of modules touches.

    Most modules need no such entry: sizes that they read from their own integer attributes are followed.

    Args:
        class_name: the last part of the class's name.
        reason: in words that complete "cannot change, because ...".
    """
    _OPAQUE[class_name] = reason


def opaque_reason(stack: Mapping[str, Any]) -> str | None:
    """Why an operator's axes are refused, if one of the modules it is called in is a leaf."""
    for _, owner in stack.values():
        name = (owner if isinstance(owner, str) else owner.__name__).rpartition(".")[2]
        if name in _OPAQUE:
            return f"{name}: {_OPAQUE[name]}"
    return None


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
