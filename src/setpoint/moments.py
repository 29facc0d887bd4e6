"""What an optimizer remembers of single entries of a parameter: forgotten where they go, begun where they come."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer

# By these names the optimizers of torch hold an average of squared gradients, whose root divides the step.
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")


def clear_state(optimizer: Optimizer, parameter: Tensor, gone: Tensor) -> None:
    """Forget the momentum of what is gone: it would only be carried along."""
    for _, value in _by_entry(optimizer, parameter):
        value.masked_fill_(gone.to(value.device), 0)


def warm_second_moment(optimizer: Optimizer, parameter: Tensor, new: Tensor, old: Tensor) -> None:
    """Give new entries the mean second moment of the old ones, of those that have one at all.

    Adam corrects its moments for having begun at zero by a count of steps that a whole parameter shares. Late in the
    run nothing is corrected any more: an entry whose moments begin at zero then moves by
    `lr (1 - beta1) / sqrt(1 - beta2)` in its first step, 3.16 times the learning rate, whatever its gradient.
    """
    for name, value in _by_entry(optimizer, parameter):
        if name in SECOND_MOMENTS:
            seen = value[old.to(value.device) & (value > 0)]
            mean = seen.mean(dtype=torch.float64) if seen.numel() else torch.zeros((), device=value.device)
            value.masked_fill_(new.to(value.device), mean.to(value.dtype))


def _by_entry(optimizer: Optimizer, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    for name, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            yield name, value
