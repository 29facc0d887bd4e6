"""Products of a sparse matrix with activations: as functions, and as operators that compilers leave whole.

`torch.compile`, `torch.export` and meta tensors cannot look into sparse tensors. For them each product is an operator
(`torch.ops.setpoint`) of the tensors that hold the matrix; otherwise the functions are called as they are, which saves
the dispatcher's time.
"""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

_PARTS = "Tensor compressed, Tensor indices, Tensor values, Tensor? bias"
_library: Any = torch.library.Library("setpoint", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(f"compressed_linear(Tensor input, {_PARTS}, bool transposed) -> Tensor")
_library.define(f"compressed_pointwise(Tensor input, {_PARTS}) -> Tensor")
_library.define(
    "semi_structured_linear(Tensor input, Tensor packed, Tensor? meta, Tensor? bias, int rows, bool cutlass) -> Tensor"
)


def compressed_linear(
    input: Tensor, compressed: Tensor, indices: Tensor, values: Tensor, bias: Tensor | None, transposed: bool
) -> Tensor:
    """`input @ W.T + bias` for a matrix W in compressed rows (CSR), or compressed rows of square blocks (BSR).

    The product is taken as `W @ input.T`; `torch.nn.functional.linear` on such a weight can be ten times slower.

    Args:
        input: of shape (n, columns).
        compressed: where each row (of blocks) begins among the values; of shape (rows + 1,).
        indices: the column of each value (block).
        values: of shape (stored,), or (stored, b, b) for blocks.
        bias: of shape (rows,).
        transposed: leave the output as the product has it, with the examples next to each other in memory. That is
            what the next such product wants, too.

    Returns:
        Of shape (n, rows), contiguous unless it is left transposed.
    """
    if not len(input):
        return input.new_empty(0, _rows(compressed, values))
    matrix = compressed_tensor(compressed, indices, values, input.shape[1])
    if len(input) == 1:
        vector = torch.mv(matrix, input[0]) if bias is None else torch.addmv(bias, matrix, input[0])
        return vector.unsqueeze(0)
    product = torch.mm(matrix, input.t()) if bias is None else torch.addmm(bias[:, None], matrix, input.t())
    return product.t() if transposed else product.t().contiguous()


def compressed_pointwise(
    input: Tensor, compressed: Tensor, indices: Tensor, values: Tensor, bias: Tensor | None
) -> Tensor:
    """`W @ input[i] + bias` for every example i; W as for `compressed_linear`.

    Args:
        input: of shape (n, columns, positions).
        compressed, indices, values, bias: see there.

    Returns:
        Of shape (n, rows, positions), contiguous.
    """
    out = input.new_empty(len(input), _rows(compressed, values), input.shape[2])
    matrix = compressed_tensor(compressed, indices, values, input.shape[1])
    # Example by example, no activation need be transposed, on the way in or out.
    for example, result in zip(input, out):
        if bias is None:
            torch.mm(matrix, example, out=result)
        else:
            torch.addmm(bias[:, None], matrix, example, out=result)
    return out


def semi_structured_linear(
    input: Tensor, packed: Tensor, meta: Tensor | None, bias: Tensor | None, rows: int, cutlass: bool
) -> Tensor:
    """`input @ W.T + bias` for a 2:4 matrix W, on CUDA.

    Args:
        input: of shape (n, columns).
        packed, meta: the parts of a `torch.sparse.SparseSemiStructuredTensor`.
        bias: of shape (rows,).
        rows: of W.
        cutlass: whether W is packed for CUTLASS, not for cuSPARSELt.

    Returns:
        Of shape (n, rows), contiguous.
    """
    kinds: Any = torch.sparse
    kind = kinds.SparseSemiStructuredTensorCUTLASS if cutlass else kinds.SparseSemiStructuredTensorCUSPARSELT
    matrix = kind(torch.Size((rows, input.shape[1])), packed, meta, None, None, None)
    return F.linear(input.contiguous(), matrix, bias).contiguous()


def compressed_tensor(compressed: Tensor, indices: Tensor, values: Tensor, columns: int) -> Tensor:
    """The sparse tensor of these parts, which shares their memory; arguments as in `compressed_linear`."""
    hear_beta_warning()
    build = torch.sparse_csr_tensor if values.dim() == 1 else torch.sparse_bsr_tensor
    return build(compressed, indices, values, (_rows(compressed, values), columns), check_invariants=False)


def opaque(input: Tensor) -> bool:
    """Whether this is no computation but a look at one, for which the product has to be an operator."""
    return torch.compiler.is_compiling() or input.is_meta


@cache
def hear_beta_warning() -> None:
    """Torch says once that these tensors are in beta state: not in the middle of a user's forward pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.zeros(1, 1).to_sparse_csr()


def _rows(compressed: Tensor, values: Tensor) -> int:
    return (len(compressed) - 1) * (values.shape[1] if values.dim() == 3 else 1)


def _fake_linear(
    input: Tensor, compressed: Tensor, indices: Tensor, values: Tensor, bias: Tensor | None, transposed: bool
) -> Tensor:
    n, rows = input.shape[0], _rows(compressed, values)
    return input.new_empty(rows, n).t() if transposed and n > 1 else input.new_empty(n, rows)


def _fake_pointwise(input: Tensor, compressed: Tensor, indices: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    return input.new_empty(input.shape[0], _rows(compressed, values), input.shape[2])


def _fake_semi_structured(
    input: Tensor, packed: Tensor, meta: Tensor | None, bias: Tensor | None, rows: int, cutlass: bool
) -> Tensor:
    return input.new_empty(input.shape[0], rows)


def _linear_flops(input: Any, compressed: Any, indices: Any, values: Any, *_: Any, **__: Any) -> int:
    return int(2 * input[0] * math.prod(values))


def _pointwise_flops(input: Any, compressed: Any, indices: Any, values: Any, *_: Any, **__: Any) -> int:
    return int(2 * input[0] * input[2] * math.prod(values))


def _semi_structured_flops(input: Any, packed: Any, meta: Any, bias: Any, rows: int, *_: Any, **__: Any) -> int:
    return int(math.prod(input) * rows)  # half of the dense product's


for _name, _function, _fake, _flops in (
    ("compressed_linear", compressed_linear, _fake_linear, _linear_flops),
    ("compressed_pointwise", compressed_pointwise, _fake_pointwise, _pointwise_flops),
    ("semi_structured_linear", semi_structured_linear, _fake_semi_structured, _semi_structured_flops),
):
    for _device in ("CPU", "CUDA"):
        _library.impl(_name, _function, _device)
    torch.library.register_fake(f"setpoint::{_name}", _fake)
    register_flop_formula(getattr(torch.ops.setpoint, _name))(_flops)
