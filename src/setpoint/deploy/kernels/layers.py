"""The layers of a model that multiply by a weight: which can be given another kernel, and which cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from setpoint.deploy.kernels.matrices import SparseMatrix
from setpoint.deploy.kernels.modules import SparseLayer, SparseLinear, SparsePointwise


@dataclass(frozen=True)
class Site:
    """A layer of a model.

    Attributes:
        name: of the module.
        module: the dense layer.
        weight: its weight as it is stored.
        refusal: why it has to stay dense.
    """

    name: str
    module: nn.Module
    weight: Tensor
    refusal: str | None

    def matrix(self) -> Tensor:
        """The weight as a matrix (outputs, inputs), contiguous."""
        flat = self.weight.detach().flatten(1)
        return flat.t().contiguous() if _is_transposed_linear(self.module) else flat.contiguous()

    def replaced(self, matrix: SparseMatrix) -> SparseLayer:
        """The layer with its weight in another form."""
        bias = self.module.bias
        assert bias is None or isinstance(bias, Tensor)
        if isinstance(self.module, _ConvNd):
            return SparsePointwise(matrix, bias, self.module.stride)
        return SparseLinear(matrix, bias)


def find_sites(model: nn.Module, exclude: Sequence[str] = ()) -> list[Site]:
    """All modules that have a weight of two axes or more of their own, in the model's order.

    Args:
        model: not changed.
        exclude: globs of the names of modules that stay dense.
    """
    owners: dict[Tensor, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(name)
    sites = []
    for name, module in model.named_modules():
        weight = next((p for p in module.parameters(recurse=False) if p.dim() > 1), None)
        if weight is None:
            continue
        refusal = _refusal(module, weight)
        if refusal is None and len(owners[weight]) > 1:
            others = ", ".join(other for other in owners[weight] if other != name)
            refusal = f"its weight is {others}'s as well, which would stay dense"
        if any(fnmatchcase(name, glob) for glob in exclude):
            refusal = "excluded"
        sites.append(Site(name, module, weight, refusal))
    return sites


def _refusal(module: nn.Module, weight: Tensor) -> str | None:
    """Why no sparse kernel can stand for a module, whatever its zeros; None if one can."""
    if isinstance(module, parametrize.ParametrizationList):
        return "a parametrization: torch.nn.utils.parametrize.remove_parametrizations makes it a plain weight"
    if type(module) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) and not _is_transposed_linear(module):
        return f"no sparse kernel for {type(module).__name__}"
    if isinstance(module, _ConvNd) and not _is_pointwise(module):
        return f"no sparse kernel for a convolution but of kernel size 1, without padding and groups: {module}"
    if _has_hooks(module):
        return "it has hooks or a forward of its own, which would be lost"
    if type(weight) is not nn.Parameter:
        return f"its weight is a {type(weight).__name__}"
    if weight.device.type not in ("cpu", "cuda"):
        return f"it is on {weight.device.type}; possible: cpu, cuda"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}"
    return None


def _is_pointwise(module: _ConvNd) -> bool:
    return all(size == 1 for size in module.kernel_size) and module.groups == 1 and not any(_padding(module))


def _padding(module: _ConvNd) -> tuple[int, ...]:
    # "same" and "valid" add nothing to a kernel of size 1.
    return () if isinstance(module.padding, str) else tuple(module.padding)


def _is_transposed_linear(module: nn.Module) -> bool:
    """Whether it is the Linear of the GPT-2 family, `transformers.pytorch_utils.Conv1D`."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def _has_hooks(module: nn.Module) -> bool:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return "forward" in vars(module) or any(getattr(module, name) for name in names)


@dataclass
class Calls:
    """How a layer is called in a forward pass.

    Attributes:
        inputs: of all calls, one tensor standing for all of the same layout.
        refusal: why these calls cannot be given to another layer.
    """

    inputs: list[Tensor] = field(default_factory=list)
    refusal: str | None = None

    def note(self, module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        """Remember a call."""
        if keywords or len(arguments) != 1 or not isinstance(arguments[0], Tensor):
            self.refusal = "it is called with other than one tensor"
            return
        x, weight = arguments[0].detach(), next(module.parameters())
        if torch.is_autocast_enabled(x.device.type):
            self.refusal = "it is called under autocast, and would leave its reduced precision"
        elif (x.device, x.dtype) != (weight.device, weight.dtype):
            self.refusal = f"it is given {x.dtype} on {x.device} and holds {weight.dtype} on {weight.device}"
        self.inputs.append(next((y for y in self.inputs if _layout(y) == _layout(x)), x))


@contextmanager
def recorded_calls(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Calls]]:
    """Within the block, note how these modules are called.

    It is done by their `forward`: with hooks on its layers, `TransformerEncoderLayer` takes another path.
    """
    calls = {module: Calls() for module in modules}
    for module in modules:
        module.forward = partial(_note_and_run, calls[module], module)
    try:
        yield calls
    finally:
        for module in modules:
            del module.forward


def _note_and_run(calls: Calls, module: nn.Module, *arguments: Any, **keywords: Any) -> Any:
    calls.note(module, arguments, keywords)
    return type(module).forward(module, *arguments, **keywords)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device
