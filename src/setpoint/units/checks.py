"""What is refused before any unit is looked for: objects that are no models, and parameters that cannot be changed."""

from __future__ import annotations

import sys
from collections.abc import Collection

import torch
from torch import Tensor, nn

from setpoint.units.names import plain_name

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_model(model: nn.Module) -> None:
    """Refuse what no run can train.

    Raises:
        TypeError: for what is no module.
        ValueError: for a scripted model, one without parameters, and one with parameters that are sharded or have no
            shape or values yet, naming the first.
    """
    if isinstance(model, type):
        raise TypeError(f"model is the class {model.__name__}, not a model: pass an instance, {model.__name__}(...)")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{repr(path) if path else 'the model'} is a ScriptModule, whose layers cannot be told: pass the "
                "Python module that it was made from, and script or trace that after training"
            )
    _check_sharding(model)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"parameter {plain_name(name)!r} has no shape before the model's first forward pass: run one on "
                "example inputs first, then make the optimizer"
            )
        if parameter.is_meta:
            raise ValueError(
                f"parameter {plain_name(name)!r} is on the meta device and has no values: move the model to a real "
                "device by model.to_empty(device=...) and load its weights first"
            )
    if next(model.parameters(), None) is None:
        raise ValueError("the model has no parameters, so there is nothing to make sparse")


def _check_sharding(model: nn.Module) -> None:
    # Where these are not loaded, no parameter is sharded by them.
    tensors, wrappers = sys.modules.get("torch.distributed.tensor"), sys.modules.get("torch.distributed.fsdp")
    for path, module in model.named_modules():
        whole = wrappers is not None and isinstance(module, wrappers.FullyShardedDataParallel)
        for name, parameter in module.named_parameters(recurse=whole):
            if whole or (tensors is not None and isinstance(parameter, tensors.DTensor)):
                full = plain_name(f"{path}.{name}" if path else name)
                how = "FullyShardedDataParallel" if whole else "DTensor (FSDP2 or tensor parallelism)"
                raise ValueError(
                    f"parameter {full!r} is sharded by {how}: magnitudes could not be "
                    "compared across shards; possible: DistributedDataParallel, or prune before sharding"
                )


def check_parameter(name: str, parameter: Tensor, held: Collection[Tensor]) -> None:
    """Refuse a chosen parameter that cannot be trained to be sparse.

    Args:
        name: its own.
        parameter: itself.
        held: the parameters that the optimizer holds, as a set: of tensors, a list compares the values.

    Raises:
        ValueError: if the optimizer does not hold it, its values are not finite, or their dtype is not real.
    """
    if parameter not in held:
        raise ValueError(f"parameter {name!r} is not held by the optimizer: add it there, or leave it out by exclude=")
    if parameter.dtype not in _DTYPES:
        raise ValueError(
            f"parameter {name!r} has dtype {parameter.dtype}; only real floating dtypes of 16 bits or more can be made "
            "sparse: leave it out by exclude="
        )
    if not bool(torch.isfinite(parameter).all()):
        raise ValueError(f"parameter {name!r} holds NaN or infinite values")
