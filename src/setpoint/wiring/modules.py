"""What is known of modules by their classes: which of their tensors share axes, and which attributes tell sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

# Attributes by which attention modules tell their numbers of heads, and of heads of keys and values.
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
SHARED_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads")


def siblings(module: nn.Module) -> Iterator[tuple[tuple[str, int], tuple[str, int]]]:
    """Pairs of (tensor, axis) of one module that are the same axis whether or not the forward pass reads both.

    A convolution's bias is left to its operator where groups make the axis a product.
    """
    if isinstance(module, nn.Linear):
        yield ("weight", 0), ("bias", 0)
    elif isinstance(module, _ConvNd):
        if not module.transposed or module.groups == 1:
            yield ("weight", 1 if module.transposed else 0), ("bias", 0)
    elif isinstance(module, _NormBase):
        names = ("weight", "bias", "running_mean", "running_var")
        for name in names[1:]:
            yield ("running_mean" if module.affine is False else "weight", 0), (name, 0)
    elif isinstance(module, nn.GroupNorm):
        yield ("weight", 0), ("bias", 0)
    elif isinstance(module, nn.LayerNorm):
        for axis in range(len(module.normalized_shape)):
            yield ("weight", axis), ("bias", axis)


def descriptions(module: nn.Module) -> Iterator[tuple[str, int | None, str, int]]:
    """Attributes that describe sizes: name, position in it (None for an integer), tensor and axis of which it tells.

    The channels of grouped convolutions are no axis of a tensor, and are left out.
    """
    if isinstance(module, nn.Linear):
        yield from (("out_features", None, "weight", 0), ("in_features", None, "weight", 1))
    elif isinstance(module, _ConvNd) and module.groups == 1:
        names = ("in_channels", "out_channels") if module.transposed else ("out_channels", "in_channels")
        yield from ((name, None, "weight", axis) for axis, name in enumerate(names))
    elif isinstance(module, _NormBase):
        yield from (("num_features", None, name, 0) for name in ("running_mean", "weight"))
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        yield from (("normalized_shape", axis, "weight", axis) for axis in range(len(module.normalized_shape)))
    elif isinstance(module, nn.GroupNorm):
        yield "num_channels", None, "weight", 0
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        yield from (("num_embeddings", None, "weight", 0), ("embedding_dim", None, "weight", 1))
    elif isinstance(module, nn.Bilinear):
        features = ("out_features", "in1_features", "in2_features")
        yield from ((name, None, "weight", axis) for axis, name in enumerate(features))
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        layer = "_l0" if isinstance(module, nn.RNNBase) else ""
        state = "hidden_size" if not getattr(module, "proj_size", 0) else "proj_size"
        yield from (("input_size", None, f"weight_ih{layer}", 1), (state, None, f"weight_hh{layer}", 1))
    elif type(module).__name__ == "Conv1D":
        yield from (("nx", None, "weight", 0), ("nf", None, "weight", 1))


def describe_sizes(module: nn.Module) -> None:
    """Have the attributes that only describe sizes, which a forward pass need not read, agree with the tensors."""
    for kind, update in _DESCRIPTIONS:
        if isinstance(module, kind):
            update(module)
            return
    update_by_name = _BY_NAME.get(type(module).__name__)
    if update_by_name is not None:
        update_by_name(module)


def _linear(module: Any) -> None:
    module.out_features, module.in_features = module.weight.shape


def _convolution(module: Any) -> None:
    outer, inner = module.weight.shape[:2]
    module.out_channels, module.in_channels = outer, inner * module.groups


def _transposed_convolution(module: Any) -> None:
    outer, inner = module.weight.shape[:2]
    module.in_channels, module.out_channels = outer, inner * module.groups


def _batch_norm(module: Any) -> None:
    tensors: list[Tensor | None] = [module.weight, module.running_mean]
    module.num_features = next((len(t) for t in tensors if t is not None), module.num_features)


def _normalized(module: Any) -> None:
    if module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)


def _group_norm(module: Any) -> None:
    if module.weight is not None:
        module.num_channels = len(module.weight)


def _embedding(module: Any) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


def _bilinear(module: Any) -> None:
    module.out_features, module.in1_features, module.in2_features = module.weight.shape


def _recurrent_cell(module: Any) -> None:
    module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]


def _recurrent(module: Any) -> None:
    module.input_size = module.weight_ih_l0.shape[1]
    if not module.proj_size:
        module.hidden_size = module.weight_hh_l0.shape[1]
    module._init_flat_weights()  # the list that the kernel is given


def _prelu(module: Any) -> None:
    module.num_parameters = len(module.weight)


def _transposed_linear(module: Any) -> None:
    module.nx, module.nf = module.weight.shape


_DESCRIPTIONS: tuple[tuple[type[nn.Module], Callable[[Any], None]], ...] = (
    (nn.Linear, _linear),
    (_ConvTransposeNd, _transposed_convolution),
    (_ConvNd, _convolution),
    (_NormBase, _batch_norm),
    (nn.LayerNorm, _normalized),
    (nn.RMSNorm, _normalized),
    (nn.GroupNorm, _group_norm),
    (nn.Embedding, _embedding),
    (nn.EmbeddingBag, _embedding),
    (nn.Bilinear, _bilinear),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _recurrent_cell),
    (nn.PReLU, _prelu),
)
# Classes of other libraries, which are not imported for their sake.
_BY_NAME: dict[str, Callable[[Any], None]] = {"Conv1D": _transposed_linear}
