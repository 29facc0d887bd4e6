"""What models cost to run: parameters, operations, bytes and milliseconds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from setpoint.budget import count_flops
from setpoint.budget.timing import medians
from setpoint.deploy.export import OnnxModel, export
from setpoint.deploy.running import evaluating, tensors_in
from setpoint.inputs import call_arguments


@dataclass(frozen=True)
class Measurement:
    """One model's costs.

    Attributes:
        parameters: entries of all parameters.
        nonzero: how many of them are not zero.
        flops: operations of a forward pass on one example, a multiplication and an addition counting two.
        bytes: of parameters and buffers.
        latency_ms: by batch size, the median time of a forward pass in milliseconds.
        onnx_latency_ms: the same in onnxruntime, on the CPU; empty if not asked for.
    """

    parameters: int
    nonzero: int
    flops: int
    bytes: int
    latency_ms: Mapping[int, float]
    onnx_latency_ms: Mapping[int, float] = field(default_factory=dict)


@torch.no_grad()
def measure(
    models: Mapping[str, nn.Module],
    example: Any,
    *,
    batches: Sequence[int] = (1, 64),
    repeats: int = 30,
    onnx: bool = False,
) -> dict[str, Measurement]:
    """Measure models side by side, in evaluation mode.

    Latencies are taken in turns, one pass of each model after another, so that what slows the machine down slows all
    of them; only their ratios carry over to other machines.

    Args:
        models: by name, on one device.
        example: one example without the batch dimension: a tensor, a tuple of arguments, or a dict of them by name.
        batches: sizes of the batches to time.
        repeats: passes of each model at each size, after three to warm up.
        onnx: time them as ONNX models as well, in onnxruntime on the CPU, with as many threads as torch has.

    Raises:
        ValueError: for no model, for fewer than one repeat, or for a model whose operations cannot be counted.
        ImportError: for `onnx` without the packages of the extra `export`.
    """
    if not models or repeats < 1:
        raise ValueError(f"there must be a model and a repeat: {len(models)} models, repeats={repeats}")
    device = next((p.device for m in models.values() for p in m.parameters()), torch.device("cpu"))
    with evaluating(*models.values()):
        latency = {size: _latencies(models, _batch(example, size, device), repeats) for size in batches}
        exported = _as_onnx(models, _batch(example, 2, device)) if onnx else {}
        elsewhere = {size: _latencies(exported, _batch(example, size), repeats) for size in batches if onnx}
        one = _batch(example, 1, device)
        return {
            name: Measurement(
                parameters=sum(p.numel() for p in model.parameters()),
                nonzero=sum(int(torch.count_nonzero(p)) for p in model.parameters()),
                flops=_flops(model, one),
                bytes=sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())),
                latency_ms={size: times[name] for size, times in latency.items()},
                onnx_latency_ms={size: times[name] for size, times in elsewhere.items()},
            )
            for name, model in models.items()
        }


def _as_onnx(models: Mapping[str, nn.Module], inputs: Any) -> dict[str, OnnxModel]:
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{i}.onnx" for i, name in enumerate(models)}
        return {name: OnnxModel(export(model, paths[name], inputs)) for name, model in models.items()}


def _flops(model: nn.Module, inputs: Any) -> int:
    try:
        by_parameter, rest = count_flops(model, inputs)
    except RuntimeError as error:
        raise ValueError(f"the operations of {type(model).__name__} cannot be counted: {error}") from error
    return sum(by_parameter.values()) + rest


def _batch(example: Any, size: int, device: torch.device | str = "cpu") -> Any:
    return _pytree.tree_map_only(Tensor, lambda t: torch.stack([t.to(device)] * size), example)


def _latencies(models: Mapping[str, Callable[..., Any]], inputs: Any, repeats: int) -> dict[str, float]:
    args, kwargs = call_arguments(inputs)
    device = next((tensor.device for tensor in tensors_in(inputs)), torch.device("cpu"))
    works = [partial(model, *args, **kwargs) for model in models.values()]
    return dict(zip(models, medians(works, device, repeats=repeats, warm_up=3)))
