"""Single layers on each kernel, over sizes, batches and sparsities."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from quiet import measured_quietly
from setpoint.deploy.kernels import Race, SparseLinear
from setpoint.deploy.kernels.matrices import CompressedMatrix, nbytes
from setpoint.deploy.kernels.race import gain

BLOCKS = (4, 8, 16, 32)


@torch.inference_mode()
def time_layer(n: int, batch: int, zeros: float, *, race: Race, patience: float) -> dict[str, Any]:
    """The dense layer's milliseconds, and how many times faster the others are."""
    variants, x = _variants(n, zeros), torch.randn(batch, n)
    times, others = measured_quietly(
        lambda: race({name: partial(layer, x) for name, layer in variants.items()}), patience=patience
    )
    return {
        "dense_ms": round(1e3 * median(times["dense"]), 4),
        "gains": {name: round(gain(times["dense"], taken), 3) for name, taken in times.items() if name != "dense"},
        "bytes": {name: nbytes(variants[name]) for name in ("dense", "csr", "bsr16", "fewer rows")},
        "other_cores": None if others is None else round(others, 2),
    }


def _variants(n: int, zeros: float) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    dense = nn.Linear(n, n).eval()
    with torch.inference_mode(False), torch.no_grad():
        weight = dense.weight * _mask(n, 1, zeros)
        sparse = {"csr": SparseLinear(CompressedMatrix(weight), dense.bias)}
        for block in BLOCKS:
            matrix = CompressedMatrix(dense.weight * _mask(n, block, zeros), block)
            sparse[f"bsr{block}"] = SparseLinear(matrix, dense.bias)
        zeroed = copy.deepcopy(dense)
        zeroed.weight.copy_(weight)
    fewer = nn.Linear(n, max(1, round(n * (1.0 - zeros)))).eval()
    return {"dense": dense, "zeroed": zeroed, **sparse, "fewer rows": fewer, "int8": int8(dense)}


def _mask(n: int, block: int, zeros: float) -> torch.Tensor:
    """1 in a fraction of the blocks, at random, exact to a block; 0 elsewhere."""
    blocks = torch.rand(n // block, n // block)
    kept = blocks.flatten().argsort()[: round((1.0 - zeros) * blocks.numel())]
    mask = torch.zeros(blocks.numel()).index_fill_(0, kept, 1.0).view_as(blocks)
    return mask.repeat_interleave(block, 0).repeat_interleave(block, 1)


def int8(model: nn.Module) -> nn.Module:
    """The dense model with weights in int8 and activations quantised as they come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this way to quantise is to be replaced
        quantised: nn.Module = torch.ao.quantization.quantize_dynamic(nn.Sequential(model), {nn.Linear})
    return quantised
