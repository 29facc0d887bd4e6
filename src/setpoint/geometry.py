"""How an optimizer moves the weights: the step size and the metric that a proximal step has to share.

Source: J. Yun, A. C. Lozano, E. Yang, "Adaptive proximal gradient methods for structured neural networks" (ProxGen),
NeurIPS 2021: step with the momentum of the smooth gradient alone, then take the proximal map in the same metric.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from setpoint.optimizer_set import OptimizerSet
from setpoint.units import Layer, Partition

FOLLOWED = (SGD, Adam, AdamW)


def followed_kind(optimizer: Optimizer) -> type[Optimizer] | None:
    """The optimizer that can be followed whose steps this one takes; None for a subclass with a step of its own."""
    step = inspect.unwrap(type(optimizer).step)
    kinds = (kind for kind in FOLLOWED if isinstance(optimizer, kind))
    return next((kind for kind in kinds if inspect.unwrap(kind.step) is step), None)


@torch.no_grad()
def proximal_geometry(optimizer: Optimizer, parameter: Tensor, partition: Partition) -> tuple[float, Tensor | None]:
    """Step size and metric of one optimizer step on a parameter's units.

    A unit whose gradient stays g is moved by `step * g / h`. For SGD the step is `lr (1 - dampening) / (1 - momentum)`,
    all the moves that one gradient causes through the momentum, and h is 1; for Adam and AdamW the step is lr and
    `h = sqrt(v) + eps`, with the bias-corrected second moment averaged over each unit (`share_second_moment` makes
    the optimizer step with that one, too).

    Returns:
        The step, and h shaped as the partition's counts; None for h = 1. The step is 0 for a parameter that Adam has
        not moved yet, as it then has no metric.

    Raises:
        ValueError: for an optimizer of another kind.
    """
    group = _group(optimizer, parameter)
    kind = followed_kind(optimizer)
    if kind is SGD:
        momentum, dampening = float(group["momentum"]), float(group["dampening"])
        return float(group["lr"]) * (1.0 - dampening if momentum else 1.0) / (1.0 - momentum), None
    if kind is not None:
        state = optimizer.state.get(parameter)
        if not state:
            return 0.0, None
        moment = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        return float(group["lr"]), _denominator(_means(moment, parameter, partition), state, group)
    names = ", ".join(known.__name__ for known in FOLLOWED)
    raise ValueError(f"optimizer {type(optimizer).__name__} takes steps of unknown geometry; possible: {names}")


@torch.no_grad()
def layer_geometry(optimizers: OptimizerSet, layer: Layer) -> tuple[float, Tensor | None]:
    """Step size and metric of one optimizer step on a layer's units, as their magnitudes have it.

    Of units that reach into several parameters, those of the first one. A magnitude that is a norm by a scale s has the
    metric `h s^2`.

    Returns:
        As `proximal_geometry`; the step is the largest of several, and the metric of smaller ones the larger.
    """
    parts = layer.leading
    found = [proximal_geometry(optimizers.of(p.parameter), p.parameter, p.partition) for p in parts]
    if len(parts) == 1 and layer.scale is None:
        return found[0]
    base = max(step for step, _ in found)
    if base == 0.0:
        return 0.0, None
    metric = torch.zeros(layer.counts, device=layer.device)
    for part, (step, h) in zip(parts, found):
        there = (part.partition.sizes() > 0).to(layer.device)
        own = torch.ones(()) if h is None else h
        metric += torch.where(there, own.to(metric) * (base / max(step, 1e-30 * base)), 0.0)
    return base, metric if layer.scale is None else metric * layer.scale.square().to(metric)


@torch.no_grad()
def share_second_moment(optimizer: Adam | AdamW, parameter: Tensor, partition: Partition) -> None:
    """Turn the step that Adam or AdamW has just taken into one with a single second moment for each unit.

    The second moment is replaced by its mean v over each unit, and the parameter moved on by
    `lr m (1 / h_entry - 1 / h_unit)`, with the bias-corrected first moment m and `h = sqrt(v) + eps`. The moment being
    linear in the squared gradients, calling this after every step is Adam with
    `v = beta2 v + (1 - beta2) mean(g^2)` exactly; of AMSGrad, with the largest such v so far. Only then has a
    unit one metric h, in which its proximal map is exact.

    Nothing is done for units of one entry, nor for a parameter that has not been moved yet. Where it got no gradient
    in this step it took none, so that there is none to correct. Weight decay, of either kind, and `maximize` need no
    care: neither passes the denominator alone.

    Source: the block-diagonal case of Yun, Lozano, Yang (see above); on their own, such steps are those of Y. Zhang et
    al., "Adam-mini: use fewer learning rates to gain more", ICLR 2025.
    """
    group, state = _group(optimizer, parameter), optimizer.state.get(parameter)
    if not state or not bool((partition.sizes() > 1).any()):
        return
    moment: Tensor = state["exp_avg_sq"]
    used: Tensor = state["max_exp_avg_sq"] if group["amsgrad"] else moment
    exact = torch.promote_types(parameter.dtype, torch.float32)
    entry, mean = _denominator(used.to(exact), state, group), _means(moment, parameter, partition)
    largest = mean
    if used is not moment:
        # The unit's former maximum still stands in the entries that did not exceed it; if all did, so does their mean.
        stands = (used > moment).double()
        count = partition.sums(stands, parameter)
        former = partition.sums(stands * used, parameter) / count.clamp_min(1.0)
        largest = torch.maximum(former, mean)
        used.copy_(partition.expand(largest, parameter))
    moment.copy_(partition.expand(mean, parameter))
    if parameter.grad is None:
        return
    unit = partition.expand(_denominator(largest, state, group).to(exact), parameter)
    scale = float(group["lr"]) / (1.0 - float(group["betas"][0]) ** float(state["step"]))
    first = state["exp_avg"].to(exact)
    parameter.add_((first / entry).sub_(first / unit).mul_(scale).to(parameter.dtype))


def _means(moment: Tensor, parameter: Tensor, partition: Partition) -> Tensor:
    """Over each unit, in float64: summed in float32, a thousand steps would pile up the rounding."""
    return partition.sums(moment.double(), parameter) / partition.sizes().to(moment.device).clamp_min(1.0)


def _denominator(moment: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """`sqrt(v) + eps`, the bias corrected, as torch has it."""
    correction = 1.0 - float(group["betas"][1]) ** float(state["step"])
    return moment.sqrt().div_(correction**0.5).add_(float(group["eps"]))


def _group(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    return next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
