"""Sparse iso-FLOP transformations: a larger model that is to be sparse, for the operations of the dense one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.utils import _pytree

from setpoint.budget.flops import count_flops
from setpoint.budget.watching import FlopCount, watch_forward
from setpoint.transforms.flow import follow, shapes_of
from setpoint.transforms.inner import Inner, check_inner
from setpoint.transforms.patterns import Chosen
from setpoint.transforms.result import SparseIFT, SparseLayer
from setpoint.transforms.sizes import exact_sparsity, parallel_branches
from setpoint.transforms.solver import iso_flop_counts
from setpoint.transforms.swap import swap
from setpoint.transforms.variance import keep_variance, rate_factors
from setpoint.transforms.wide import Initialise, widen
from setpoint.units import Patterns, unwrap

Kind = Literal["wide", "parallel", "factorized", "doped"]

# On a model that was transformed; copies have it as well.
MARK = "_sparse_ift"


def sparse_ift(
    model: nn.Module,
    kind: Kind = "wide",
    sparsity: float = 0.75,
    *,
    example_inputs: Any,
    include: Patterns = None,
    exclude: Patterns = None,
    initialise: Initialise = "fresh",
    inner: Inner = "linear",
) -> SparseIFT:
    """Spend a sparsity on size: a copy of a model whose layers hold more weights, of which most are to be zero.

    Trained with the `target`, `scope` and `include` of the result, it makes as many operations as the dense model and
    searches among more. The layers that read the model's input and make its output stay dense. What they gain in size,
    and what rounding costs, is taken from the others, so that the sum holds: each sparse weight keeps the fraction
    `d = (B - F) / sum(m N)`, with B the operations of the dense model, F those of all that stays dense in the new one,
    and m for each of the N entries; down to whole entries (`iso_flop_counts`).

    On dense kernels, which multiply with zeros, the model costs what it stores: about `1 / (1 - s)` times the dense one
    (`"doped"`: `1 + s` times). Only kernels for unstructured sparsity make the operations real.

    Source: V. Thangarasa, S. Saxena, A. Gupta, S. Lie, "Sparse-IFT: Sparse iso-FLOP transformations for maximizing
    training efficiency", ICML 2024.

    Args:
        model: stays as it is.
        kind: `"wide"`: inputs and outputs times `sqrt(1 / (1 - s))`, along the model's wiring. `"parallel"`:
            `1 / (1 - s)` copies added up, each with its batch norm. `"factorized"`: two sparse layers in place of one,
            with a larger size in between. `"doped"`: a sparse layer plus a dense product of low rank.
        sparsity: s, in (0, 1).
        example_inputs: what the model is called with: a tensor, or a tuple of arguments.
        include: globs on names of modules or weights: the layers to replace, or of `"wide"` those whose outputs are to
            grow, with all that shares the axis. A layer that is to be replaced and is named in full is, wherever it
            stands.
        exclude: globs on the same names: layers that stay dense, and whose outputs do not grow.
        initialise: the new weights. `"fresh"`: modules with new sizes, and those that they lie in, draw by their own
            `reset_parameters`; what was one value all over keeps it; parameters that no module draws are normal with
            their old mean and deviation. The weights of sparse layers that no batch norm follows are then scaled to
            the variance that the dense ones begin with (`setpoint.transforms.variance`). A function is called with the
            model instead of that. `"grow"`, of `"wide"` only: units are repeated so that the model computes what the
            dense one does.
        inner: what comes between the two layers of `"factorized"`, and at the end of each branch of `"parallel"`:
            `"linear"`, nothing; `"norm"`, `"relu"` or `"norm-relu"`. A batch norm that follows a parallel layer is in
            its branches in any case. Without an activation neither kind computes what the dense layer could not.

    Raises:
        ValueError: for anything that cannot be done, naming the module, what was asked and what is possible.
    """
    dense = unwrap(model)
    _check(dense, kind, sparsity, initialise, inner)
    inputs = _placed(dense, example_inputs)
    chosen, flow, (flops, between) = Chosen.of(include, exclude), follow(dense, inputs), count_flops(dense, inputs)
    made = copy.deepcopy(dense)
    if kind == "wide":
        names, left = widen(made, sparsity, inputs, flow, flops, chosen, initialise)
    else:
        names, left = swap(made, kind, sparsity, flow, flops, chosen, inner)
    if not names:
        reasons = "; ".join(f"{name}: {why}" for name, why in left.items())
        raise ValueError(f"no layer can be replaced ({reasons})" if reasons else "the model has no layer to replace")
    if callable(initialise):
        initialise(made)
    setattr(made, MARK, kind)
    result = _balanced(made, kind, sparsity, inputs, names, left, dense, sum(flops.values()) + between, flow.shapes)
    if initialise == "fresh":
        keep_variance(made, dense, result.layers, flow.norms)
    return replace(result, rates=rate_factors(made, dense, result.layers, flow.norms))


def _check(model: nn.Module, kind: str, sparsity: float, initialise: Initialise, inner: str) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r} is none of {', '.join(get_args(Kind))}")
    exact_sparsity(sparsity)
    if kind == "parallel" and parallel_branches(sparsity) < 2:
        raise ValueError(
            f"sparsity={sparsity} makes {1 / (1 - sparsity):.4g} copies of each layer, which is one to the nearest "
            "whole number: from 1/3 on there are two"
        )
    if not callable(initialise) and initialise not in ("fresh", "grow"):
        raise ValueError(f"initialise={initialise!r} is none of 'fresh', 'grow' or a function of the model")
    if initialise == "grow" and kind != "wide":
        raise ValueError(f"initialise='grow' repeats units, which only kind='wide' does; {kind!r} takes 'fresh'")
    check_inner(inner)
    if inner != "linear" and kind not in ("parallel", "factorized"):
        raise ValueError(
            f"inner={inner!r} stands between the layers of kind='factorized' and in the branches of kind='parallel'; "
            f"{kind!r} has no such place"
        )
    for path, module in model.named_modules():
        if hasattr(module, "_orig_mod"):
            raise ValueError(f"module {path!r} is compiled: transform the model first, and compile what comes of it")
        if hasattr(module, MARK):
            where = f"its module {path!r}" if path else "the model"
            raise ValueError(
                f"{where} was transformed before, to kind {getattr(module, MARK)!r}: begin with a dense one"
            )


def _placed(model: nn.Module, example_inputs: Any) -> tuple[Any, ...]:
    """The arguments, where the model is."""
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    device = next((p.device for p in model.parameters()), None)
    return tuple(_pytree.tree_map_only(Tensor, lambda t: t.to(device), i) for i in inputs)


def _balanced(
    made: nn.Module,
    kind: str,
    sparsity: float,
    inputs: tuple[Any, ...],
    names: list[str],
    left: Mapping[str, str],
    dense: nn.Module,
    budget: int,
    shapes: tuple[tuple[int, ...], ...],
) -> SparseIFT:
    """Count what the larger model costs, and divide the dense one's operations among its weights."""
    try:
        count, answer = watch_forward(made, inputs, FlopCount)
    except Exception as error:
        read = _alike(made, getattr(error, "obj", None))
        hint = f" (of layers that the model reads into: leave them as they are by exclude={read})" if read else ""
        raise ValueError(f"the model fails on the example inputs once it is transformed: {error}{hint}") from error
    if (now := shapes_of(answer)) != shapes:
        raise ValueError(f"the transformed model answers with shapes {now}, the dense one with {shapes}")
    flops, between = count.by_parameter, count.rest
    parameters = dict(made.named_parameters())
    uneven = [name for name in names if flops.get(name, 0) % parameters[name].numel()]
    left = {**left, **dict.fromkeys(uneven, "its entries do not all take part in as many operations")}
    names = [name for name in names if name not in uneven]
    fixed = between + sum(n for name, n in flops.items() if name not in names)
    entries = [parameters[name].numel() for name in names]
    rates = [flops[name] // n for name, n in zip(names, entries)]
    if fixed + sum(rates) > budget:
        raise ValueError(
            f"what stays dense takes {fixed:,} operations once the model is transformed, of the {budget:,} that the "
            f"dense model takes: nothing is left for sparse layers at sparsity={sparsity}. A lower sparsity, or a kind "
            "that leaves the first and the last layer as they are, may be possible"
        )
    try:
        kept = iso_flop_counts(entries, rates, budget - fixed)
    except ValueError as error:
        raise ValueError(f"sparsity={sparsity} is too high for the layers {', '.join(names)}: {error}") from error
    layers = tuple(
        SparseLayer(name, tuple(parameters[name].shape), n, k, rate)
        for name, n, k, rate in zip(names, entries, kept, rates)
        if k < n
    )
    full = sum(n * rate for n, k, rate in zip(entries, kept, rates) if k == n)
    stored, before = (sum(p.numel() for p in m.parameters()) for m in (made, dense))
    return SparseIFT(kind, sparsity, made, layers, dict(left), budget, fixed + full, before, stored)


def _alike(model: nn.Module, copied: Any) -> list[str]:
    """Paths of the modules that a copied one may be a copy of: its class and sizes are theirs."""
    if not isinstance(copied, nn.Module):
        return []

    def sizes(module: nn.Module) -> tuple[type, list[tuple[str, tuple[int, ...]]]]:
        return type(module), [(name, tuple(p.shape)) for name, p in module.named_parameters()]

    return [path for path, module in model.named_modules() if sizes(module) == sizes(copied)]
