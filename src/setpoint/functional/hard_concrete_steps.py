"""Hard-concrete gates by the million: their random numbers, and steps of an Adam on their locations.

A random number is a hash of a key and of where its gate stands, so that it can be drawn anew at any time and anywhere,
piece by piece. What is computed from it uses operations alone that IEEE 754 rounds exactly, in an order that is fixed:
eager operators, on any device, and compiled kernels (`setpoint.functional.compiled.hard_concrete`) give the same bits.
Moments are kept in bfloat16 and rounded at random, so that the small changes of slow averages are not lost.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from setpoint.functional.compiled import usable
from setpoint.functional.hard_concrete import TEMPERATURE, hard_concrete_slope

# Gates that are worked on together on a CPU, so that temporaries stay in its cache.
PIECE = 1 << 18
# Decay rates of Adam's moments.
FIRST, SECOND = 0.9, 0.99
# Bounds of log alpha.
BOUNDS = (-6.0, 4.0)
# The least that a gate's slopes come to, beside those of the others, for its steps to be of full size.
LEAST = 1e-15
# A gate's median is above zero where its log alpha is above this.
SHUT = -TEMPERATURE * math.log(11.0)
# How far locations are told apart in an exponential.
FAR = 40.0
# Added to a number and taken off again, it rounds it to a whole one; the bits of the sum hold that.
MAGIC, MAGIC_BITS = 12582912.0, 0x4B400000
# Of 2**f.
SERIES = tuple(math.log(2.0) ** k / math.factorial(k) for k in range(7))


@dataclass(frozen=True)
class Key:
    """Picks one sequence of random bits: two numbers of 32 bits, signed."""

    first: int
    second: int

    @classmethod
    def of(cls, *what: object) -> Key:
        """The key of whatever is named."""
        digest = hashlib.blake2b(" ".join(map(str, what)).encode(), digest_size=8).digest()
        return cls(*(int.from_bytes(half, "little", signed=True) for half in (digest[:4], digest[4:])))


@dataclass(frozen=True)
class Survey:
    """What the loss pulls at some gates, together: scalar tensors in float64.

    Attributes:
        peak: the largest slope.
        square: the sum of the squared pulls on log alpha, in units of the squared `power_below(peak)`.
        moving: how many gates are pulled at.
    """

    peak: Tensor
    square: Tensor
    moving: Tensor


@dataclass(frozen=True)
class Descent:
    """One step of Adam on the pulls of the loss plus a charge for the probability to be open.

    Attributes:
        unit: a power of two that slopes are divided by first.
        factor: what they are multiplied by then.
        rate: step size, corrected for the first moment's start at zero.
        correction: of the second moment, likewise.
        key: of the bits by which moments are rounded.
    """

    unit: Tensor
    factor: Tensor
    rate: float
    correction: float
    key: Key


def power_below(number: Tensor) -> Tensor:
    """The largest power of two that is not above a number; for 0 any."""
    return torch.exp2(torch.frexp(number).exponent.double() - 1.0)


def draw(log_alpha: Tensor, begin: int, key: Key) -> Tensor:
    """A sample of gates of temperature 2/3.

    Args:
        log_alpha: float32, flat.
        begin: where the first of them stands among all.
        key: of the sample.
    """
    if _compiled([log_alpha]):
        from setpoint.functional.compiled.hard_concrete import draw_all

        return draw_all(log_alpha, begin, key)
    sample = torch.empty_like(log_alpha)
    for start, end in pieces(log_alpha):
        sample[start:end] = _drawn(log_alpha[start:end], begin + start, key)
    return sample


def together(found: list[Survey]) -> Survey:
    """Several as one."""
    if len(found) == 1:
        return found[0]
    peaks = torch.stack([each.peak for each in found])
    peak = peaks.amax()
    scale = torch.where(peaks > 0, power_below(peaks) / power_below(peak), 0.0)
    square = (torch.stack([each.square for each in found]) * scale.square()).sum()
    return Survey(peak, square, torch.stack([each.moving for each in found]).sum())


@dataclass(frozen=True)
class Slopes:
    """Slopes of the loss by gates, and the gates as they were then: flat."""

    slopes: Tensor
    gates: Tensor

    def survey(self) -> Survey:
        """Look at all of them."""
        return together([_surveyed(self.slopes[a:b], self.gates[a:b]) for a, b in pieces(self.slopes)])

    def descend(
        self, log_alpha: Tensor, first: Tensor, second: Tensor, charge: Tensor, begin: int, step: Descent
    ) -> None:
        """Take a step with the gates, in place.

        Args:
            log_alpha: float32, flat.
            first, second: moments, bfloat16.
            charge: for the probability of being open, float32: one number, or one a gate.
            begin: where the first gate stands among all.
            step: the rest.
        """
        for start, end in pieces(log_alpha):
            part = slice(start, end)
            pull = _pull(self.slopes[part], self.gates[part], step.unit).mul_(step.factor.float())
            pull.add_(_openness(log_alpha[part]).mul_(charge if charge.ndim == 0 else charge[part]))
            _adam(log_alpha[part], first[part], second[part], pull, begin + start, step)


def compiled_slopes(weight: Tensor, grad: Tensor, gates: Tensor, log_alpha: Tensor) -> Slopes | None:
    """The slopes of single weights, which a kernel computes while it uses them; None where it cannot.

    Args:
        weight, grad, gates: of one shape.
        log_alpha: of the gates.
    """
    tensors = [weight, grad, gates, log_alpha]
    if any(tensor.dtype is not torch.float32 for tensor in tensors) or not _compiled(tensors):
        return None
    from setpoint.functional.compiled.hard_concrete import EntrySlopes

    return EntrySlopes(grad, gates, weight)


def pieces(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Where a flat tensor is cut: nowhere but on a CPU."""
    size = PIECE if tensor.device.type == "cpu" else max(1, len(tensor))
    return ((start, min(start + size, len(tensor))) for start in range(0, len(tensor), size))


def _compiled(tensors: list[Tensor]) -> bool:
    return usable(tensors) and all(tensor.is_contiguous() for tensor in tensors)


def _adam(a: Tensor, first: Tensor, second: Tensor, gradient: Tensor, begin: int, step: Descent) -> None:
    m, v = first.float(), second.float()
    m.add_((gradient - m).mul_(1.0 - FIRST))
    v.mul_(SECOND).add_((gradient * (1.0 - SECOND)).mul_(gradient))
    root = _root(v * step.correction).clamp_min_(LEAST)
    a.sub_((m / root).mul_(step.rate)).clamp_(*BOUNDS)
    bits = _bits(begin, len(a), step.key, a.device)
    first.copy_(_rounded(m, bits & 0xFFFF))
    second.copy_(_rounded(v, (bits >> 16) & 0xFFFF))


def _rounded(values: Tensor, bits: Tensor) -> Tensor:
    """In bfloat16: up or down, by 16 random bits."""
    return ((values.view(torch.int32) + bits) >> 16).to(torch.int16).view(torch.bfloat16)


def _surveyed(slopes: Tensor, gates: Tensor) -> Survey:
    peak = torch.linalg.vector_norm(slopes, torch.inf).double()
    pull = _pull(slopes, gates, power_below(peak))
    return Survey(peak, torch.dot(pull, pull).double(), torch.count_nonzero(pull).double())


def _pull(slopes: Tensor, gates: Tensor, unit: Tensor) -> Tensor:
    return slopes.div(unit).to(torch.float32).mul_(hard_concrete_slope(gates.float()))


def _bits(begin: int, count: int, key: Key, device: torch.device) -> Tensor:
    """32 random bits for each of so many places: a hash of two rounds, with half of the key before each."""
    x = torch.arange(begin, begin + count, device=device).to(torch.int32)
    x ^= key.first
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x += key.second
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x846CA68B - (1 << 32)
    return x.bitwise_xor_((x >> 16) & 0xFFFF)


def _drawn(a: Tensor, begin: int, key: Key) -> Tensor:
    """`clip(1.2 s - 0.1, 0, 1)`, `s = sigmoid(1.5 (logit(u) + a)) = 1 / (1 + r**1.5)`, `r = (1 / u - 1) exp(-a)`."""
    count = ((_bits(begin, len(a), key, a.device) >> 9) & 0x7FFFFF).float().add_(0.5)  # u, in units of 2**-23
    r = (8388608.0 - count).mul_(_shut_odds(a)).div_(count)
    return _root(r).mul_(r).add_(1.0).reciprocal_().mul_(1.2).sub_(0.1).clamp_(0.0, 1.0)


def _root(x: Tensor) -> Tensor:
    """The square root, rounded exactly: on a CPU torch's own may be one bit off."""
    return x.double().sqrt_().float() if x.device.type == "cpu" else x.sqrt()


def _openness(a: Tensor) -> Tensor:
    """`p (1 - p)` for the probability p of being open."""
    odds = _shut_odds(a).mul_(math.exp(SHUT))
    q = (odds + 1.0).reciprocal_()
    return odds.mul_(q).mul_(q)


def _shut_odds(a: Tensor) -> Tensor:
    """`exp(-a)`: a power of two by the series of the rest."""
    y = a.clamp(-FAR, FAR).mul_(-1.0 / math.log(2.0))
    shifted = y + MAGIC
    y -= shifted - MAGIC
    power = ((shifted.view(torch.int32) - (MAGIC_BITS - 127)) << 23).view(torch.float32)
    total = torch.full_like(y, SERIES[-1])
    for factor in SERIES[-2::-1]:
        total.mul_(y).add_(factor)
    return total.mul_(power)
