"""Hard-concrete gates: random numbers in [0, 1] that are exactly 0 and exactly 1 with positive probability.

Source: C. Louizos, M. Welling, D. P. Kingma, "Learning sparse neural networks through L0 regularization", ICLR 2018,
section 2.2 and equations 10 to 13.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The interval over which the concrete variable is stretched before it is clipped to [0, 1].
_LOW, _HIGH = -0.1, 1.1
TEMPERATURE = 2.0 / 3.0


def hard_concrete(log_alpha: Tensor, uniform: Tensor | None = None, temperature: float = TEMPERATURE) -> Tensor:
    """A sample of the gates, or their median.

    `z = clip(1.2 s - 0.1, 0, 1)` with `s = sigmoid((log(u / (1 - u)) + log_alpha) / temperature)`. Differentiable.

    Args:
        log_alpha: the gates' locations, of any shape; computed in float32 or better.
        uniform: u in [0, 1], of the same shape; None for the median, which is u = 1/2. Values at the ends give gates
            that are quite shut or open.
        temperature: above 0; the lower, the closer to zero or one.

    Returns:
        Gates in [0, 1], shaped as `log_alpha`.

    Raises:
        ValueError: for a temperature that is not above 0.
    """
    _check(temperature)
    location = _exact(log_alpha)
    noise = 0.0 if uniform is None else torch.logit(uniform.to(location.device, location.dtype))
    shifted = location + noise
    if not shifted.requires_grad:
        return shifted.div_(temperature).sigmoid_().mul_(_HIGH - _LOW).add_(_LOW).clamp_(0.0, 1.0)
    return (torch.sigmoid(shifted / temperature) * (_HIGH - _LOW) + _LOW).clamp(0.0, 1.0)


def hard_concrete_open(log_alpha: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The probability that a gate is not zero: `sigmoid(log_alpha - temperature log(0.1 / 1.1))`.

    The median gate is above zero exactly where this is above one half.

    Args:
        log_alpha: as in `hard_concrete`.
        temperature: likewise.

    Raises:
        ValueError: for a temperature that is not above 0.
    """
    _check(temperature)
    return torch.sigmoid(_exact(log_alpha) - temperature * math.log(-_LOW / _HIGH))


def hard_concrete_slope(gates: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The derivative of gates by their `log_alpha`, from the gates alone: 0 where they are clipped.

    Args:
        gates: what `hard_concrete` returned, sampled or not.
        temperature: of the same.

    Raises:
        ValueError: for a temperature that is not above 0.
    """
    _check(temperature)
    z = _exact(gates)
    # Twice the distance from the middle, as a fraction of the whole range: 4 s (1 - s) = 1 - d^2.
    d = (z - 0.5 * (_LOW + _HIGH)) * (2.0 / (_HIGH - _LOW))
    # One between the ends, zero at them.
    inside = (z * (1.0 - z)).sign()
    return (1.0 - d * d).mul_(0.25 * (_HIGH - _LOW) / temperature).mul_(inside)


def _exact(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _check(temperature: float) -> None:
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be a number above 0")
