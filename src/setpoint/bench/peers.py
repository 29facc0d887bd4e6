"""Other libraries' proximal maps, pruning and multipliers, to be timed in the same run. One that is missing is said."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from setpoint.bench.inputs import Weights
from setpoint.bench.references import PASS
from setpoint.bench.work import Work
from setpoint.methods.multiplier import ProportionalIntegral

_EXTRA = "pip install 'setpoint[benchmarks]'"
_COPIED = "on a copy, made each time"
_GIVEN = f"{_COPIED}; at a given threshold"
_DUAL = "cooper, dual step"


def pruning(weights: Weights, sparsity: float) -> list[Work]:
    """Global pruning by magnitude: what torch has, and torchao's per tensor."""
    return [
        Work(
            "torch.nn.utils.prune.global_unstructured",
            partial(_torch_prune, weights.tensors, sparsity),
            PASS,
            partial(_off_pruned, round((1.0 - sparsity) * weights.count)),
        ),
        _torchao(
            "torchao MinSparsityConstraint",
            lambda pat: partial(
                _in_copies, pat.MinSparsityConstraint(0.0, sparsity), [w.view(-1, 1) for w in weights.flat]
            ),
            f"{_COPIED}; each tensor by itself",
        ),
    ]


def lasso(weights: Weights) -> Work:
    """torchao's proximal map of the l1 norm, on single weights."""
    return _torchao("torchao ProxLasso", lambda pat: partial(_in_copies, pat.ProxLasso(1.0), weights.flat), _GIVEN)


def group_lasso(weights: Weights) -> Work:
    """torchao's proximal map of the group lasso, on the rows of matrices."""
    return _torchao(
        "torchao ProxGroupLassoVectorized",
        lambda pat: partial(_in_copies, pat.ProxGroupLassoVectorized(0.3, reduce_dim=1), weights.vectors),
        _GIVEN,
    )


def multipliers() -> list[Work]:
    """One step of our Lagrange multiplier, and of cooper's with its nuPI optimizer."""
    controller, violation = ProportionalIntegral(10.0, 0.1), torch.full((), 0.3, dtype=torch.float64)
    memory = controller.start(violation.device)
    theirs = _imported("cooper", "cooper-optim")
    name = "multiplier, one step"
    if isinstance(theirs, str):
        return [Work(name, partial(controller.step, memory, violation)), Work(_DUAL, None, note=theirs)]
    return [Work(_DUAL, _dual_step(theirs)), Work(name, partial(controller.step, memory, violation), _DUAL)]


def _torchao(name: str, make: Callable[[Any], Callable[[], Any]], note: str) -> Work:
    pat = _imported("torchao.prototype.pat.optim", "torchao")
    if isinstance(pat, str):
        return Work(name, None, PASS, note=pat)
    try:
        return Work(name, make(pat), PASS, note=note)
    except (AttributeError, TypeError) as error:  # a prototype: it may have changed
        return Work(name, None, PASS, note=f"another version of torchao: {error}")


def _imported(module: str, package: str) -> Any:
    """The module, or why there is none."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever a package of others does when it is imported
        reason = f"{package} is not installed: {_EXTRA}" if isinstance(error, ModuleNotFoundError) else str(error)
        return f"cannot be imported: {reason}"


@torch.no_grad()
def _in_copies(prox_map: Any, tensors: Sequence[Tensor]) -> list[Tensor]:
    copies = [t.clone() for t in tensors]
    for copy in copies:
        prox_map.apply_(copy, 1.0)
    return copies


@torch.no_grad()
def _torch_prune(tensors: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    holders = [nn.Module() for _ in tensors]
    for holder, tensor in zip(holders, tensors):
        holder.register_parameter("weight", nn.Parameter(tensor))
    prune.global_unstructured([(h, "weight") for h in holders], pruning_method=prune.L1Unstructured, amount=sparsity)
    return [holder.get_buffer("weight_mask") for holder in holders]


def _off_pruned(budget: int, masks: Sequence[Tensor]) -> dict[str, float]:
    return {"off": sum(int(torch.count_nonzero(m)) for m in masks) - budget}


def _dual_step(cooper: Any) -> Callable[[], None]:
    multiplier = cooper.multipliers.DenseMultiplier(num_constraints=1)
    constraint = cooper.Constraint(cooper.ConstraintType.INEQUALITY, multiplier=multiplier)
    gains = {"Kp": torch.tensor([10.0]), "Ki": torch.tensor([1.0])}
    dual = cooper.optim.nuPI(multiplier.parameters(), lr=0.1, maximize=True, **gains)
    violation = torch.tensor([0.3])

    def step() -> None:
        dual.zero_grad()
        state = cooper.ConstraintState(violation=violation)
        constraint.compute_contribution_to_lagrangian(state, "dual").lagrangian_contribution.backward()
        dual.step()
        multiplier.post_step_()

    return step
