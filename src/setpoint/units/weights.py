"""What a model's modules do with their parameters: which are weights of products, and how these are stored."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from setpoint.units.layout import Layout
from setpoint.units.names import plain_name

FROZEN = "it is frozen (requires_grad is False)"
UNKNOWN = "it is no weight of a standard layer: include= takes it by name"
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)


@dataclass(frozen=True, eq=False)
class Place:
    """Where a module holds a parameter.

    Attributes:
        path: of the module, without the traces of wrappers.
        module: itself.
        attribute: the name by which it holds the parameter.
        computed: what is made of the parameter, where it is not used as it is: the tensor's name, and how to undo that.
    """

    path: str
    module: nn.Module
    attribute: str
    computed: tuple[str, str] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The parameter's own name, and the name of what is computed from it."""
        own = _joined(self.path, self.attribute)
        return (own,) if self.computed is None else (own, self.computed[0])


def places_of(model: nn.Module) -> dict[nn.Parameter, list[Place]]:
    """All places in which a model holds each of its parameters, in the order of `named_parameters`."""
    lists: dict[str, tuple[str, str]] = {}
    places: dict[nn.Parameter, list[Place]] = {}
    for raw, module in model.named_modules(remove_duplicate=False):
        path = plain_name(f"{raw}.").removesuffix(".")
        if isinstance(module, ParametrizationList):
            owner, _, tensor = f".{path}".rpartition(".parametrizations.")
            undo = f"torch.nn.utils.parametrize.remove_parametrizations(module, {tensor!r})"
            lists[path] = _joined(owner.removeprefix("."), tensor), undo
        within = next((lists[above] for above in lists if f"{path}.".startswith(f"{above}.")), None)
        hooked = _hooked(path, module)
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                place = Place(path, module, attribute, within or hooked.get(attribute))
                places.setdefault(parameter, []).append(place)
    return places


def _hooked(path: str, module: nn.Module) -> dict[str, tuple[str, str]]:
    """By attribute, what hooks of torch compute from it before each forward pass."""
    found: dict[str, tuple[str, str]] = {}
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            undo = f"torch.nn.utils.remove_weight_norm(module, {hook.name!r})"
            found |= {f"{hook.name}{end}": (_joined(path, hook.name), undo) for end in ("_g", "_v")}
        elif isinstance(hook, SpectralNorm):
            undo = f"torch.nn.utils.remove_spectral_norm(module, {hook.name!r})"
            found[f"{hook.name}_orig"] = _joined(path, hook.name), undo
        elif isinstance(hook, BasePruningMethod):
            undo = f"torch.nn.utils.prune.remove(module, {hook._tensor_name!r})"
            found[f"{hook._tensor_name}_orig"] = _joined(path, hook._tensor_name), undo
    return found


def never(parameter: Tensor, places: Sequence[Place]) -> str | None:
    """Why a parameter cannot be made sparse, even if it is asked for by name; None if it can."""
    for place in places:
        if place.computed is not None:
            return (
                "a parametrization, norm or mask computes the weight from it, so that its zeros need not be the "
                f"weight's; possible: {place.computed[1]} makes it a plain weight"
            )
    if not parameter.is_floating_point() and not parameter.is_complex():
        return f"its entries are no real numbers (they are {parameter.dtype})"
    return None if parameter.requires_grad else FROZEN


def not_by_default(parameter: Tensor, places: Sequence[Place]) -> str | None:
    """Why a parameter is only made sparse if `include` asks for it; None if it is by default."""
    weight = any(layout_in(place, parameter) is not None for place in places)
    if any(isinstance(place.module, _EMBEDDINGS) for place in places):
        return "it is shared with an embedding" if weight else "it is an embedding"
    if weight:
        return None
    if any(isinstance(place.module, _NORMS) for place in places):
        return "it scales a norm"
    return "it is a bias" if any(_is_bias(place.attribute) for place in places) else UNKNOWN


def layout_of(parameter: Tensor, places: Sequence[Place], derived: Mapping[Tensor, Layout]) -> Layout:
    """How a parameter is stored, as its modules tell.

    Args:
        parameter: to be read.
        places: where it is held.
        derived: layouts that a forward pass has shown, for parameters of whose modules it is not known.
    """
    found = [layout for place in places if (layout := layout_in(place, parameter)) is not None]
    known = next((layout for layout in found if layout.known), None)
    if known is None and any(isinstance(place.module, _EMBEDDINGS) for place in places):
        known = Layout(tuple(parameter.shape))
    fallback = found[0] if found else Layout(tuple(parameter.shape), known=parameter.ndim < 2)
    return known or derived.get(parameter, fallback)


def layout_in(place: Place, parameter: Tensor) -> Layout | None:
    """How a module of a standard kind stores one of its weights; None for what is no weight of such a module."""
    module, attribute, shape = place.module, place.attribute, tuple(parameter.shape)
    if isinstance(module, nn.Linear | _ConvNd | nn.Bilinear):
        return Layout.of(module, parameter) if attribute == "weight" else None
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return Layout(shape) if attribute.startswith("weight_") else None
    if isinstance(module, nn.MultiheadAttention):
        return Layout(shape) if attribute.endswith("proj_weight") else None
    if _is_transposed_linear(module):
        return Layout(shape, transposed=True) if attribute == "weight" else None
    if parameter.ndim == 3 and not _is_bias(attribute) and shape[0] in _experts(module):
        transposed = getattr(module, "is_transposed", None)
        return Layout(shape, transposed=bool(transposed), stacked=True, known=isinstance(transposed, bool))
    return None


def _experts(module: nn.Module) -> Iterator[int]:
    """The whole numbers above 1 by which a module counts experts."""
    for name, value in vars(module).items():
        if "expert" in name and type(value) is int and value > 1:
            yield value


def _is_transposed_linear(module: nn.Module) -> bool:
    """Whether it is the `Conv1D` of the transformers library, which need not be there."""
    library = sys.modules.get("transformers.pytorch_utils")
    return library is not None and isinstance(module, library.Conv1D)


def _is_bias(attribute: str) -> bool:
    return attribute == "bias" or attribute.startswith("bias_") or attribute.endswith("_bias")


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
