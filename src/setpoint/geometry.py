"""How an optimizer moves the weights: the step size and the metric that a proximal step has to share.

Source: J. Yun, A. C. Lozano, E. Yang, "Adaptive proximal gradient methods for structured neural networks" (ProxGen),
NeurIPS 2021: step with the momentum of the smooth gradient alone, then take the proximal map in the same metric.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from setpoint.units import Partition

FOLLOWED = (SGD, Adam, AdamW)


@torch.no_grad()
def proximal_geometry(optimizer: Optimizer, parameter: Tensor, partition: Partition) -> tuple[float, Tensor | None]:
    """Step size and metric of one optimizer step on a parameter's units.

    A unit whose gradient stays g is moved by `step * g / h`. For SGD the step is `lr (1 - dampening) / (1 - momentum)`,
    all the moves that one gradient causes through the momentum, and h is 1; for Adam and AdamW the step is lr and
    `h = sqrt(v) + eps`, with the bias-corrected second moment averaged over each unit.

    Returns:
        The step, and h shaped as the partition's counts; None for h = 1.

    Raises:
        ValueError: for an optimizer of another kind.
    """
    group = _group(optimizer, parameter)
    if isinstance(optimizer, SGD):
        momentum, dampening = float(group["momentum"]), float(group["dampening"])
        return float(group["lr"]) * (1.0 - dampening if momentum else 1.0) / (1.0 - momentum), None
    if isinstance(optimizer, Adam | AdamW):
        return float(group["lr"]), _adam_metric(optimizer.state[parameter], group, partition)
    names = ", ".join(kind.__name__ for kind in FOLLOWED)
    raise ValueError(f"optimizer {type(optimizer).__name__} takes steps of unknown geometry; possible: {names}")


def _adam_metric(state: dict[str, Any], group: dict[str, Any], partition: Partition) -> Tensor:
    moment: Tensor = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    correction = 1.0 - float(group["betas"][1]) ** float(state["step"])
    sizes = partition.sizes().to(moment.device)
    mean = partition.magnitudes(moment.sqrt()).double().square() / sizes.clamp_min(1.0)
    metric: Tensor = (mean / correction).sqrt() + float(group["eps"])
    return metric


def _group(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    return next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
