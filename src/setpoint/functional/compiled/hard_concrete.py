"""Draws and steps of hard-concrete gates, as `setpoint.functional.hard_concrete_steps` has them, bit by bit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from setpoint.functional import hard_concrete_steps as eager
from setpoint.functional.compiled.jit import kernel
from setpoint.functional.compiled.threads import Array, on_threads, ranges
from setpoint.functional.hard_concrete import TEMPERATURE

_ONE, _ZERO, _HALF = np.float32(1.0), np.float32(0.0), np.float32(0.5)
_FAR, _LOG2E, _MAGIC = np.float32(eager.FAR), np.float32(-1.0 / math.log(2.0)), np.float32(eager.MAGIC)
_MAGIC_BITS = np.uint32(eager.MAGIC_BITS - 127)
_S0, _S1, _S2, _S3, _S4, _S5, _S6 = (np.float32(factor) for factor in eager.SERIES)
_SHUT, _SHUT_ODDS = np.float32(eager.SHUT), np.float32(math.exp(eager.SHUT))
_STEEP, _WIDE = np.float32(2.0 / 1.2000000000000002), np.float32(0.25 * 1.2000000000000002 / TEMPERATURE)
_MIX, _MORE = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
_NEW_FIRST, _SECOND, _NEW_SECOND = (
    np.float32(1.0 - eager.FIRST),
    np.float32(eager.SECOND),
    np.float32(1.0 - eager.SECOND),
)
_LEAST, _LOW, _HIGH = np.float32(eager.LEAST), np.float32(eager.BOUNDS[0]), np.float32(eager.BOUNDS[1])
_LARGEST = np.float32(np.finfo(np.float32).max)


# Without leave to reorder or contract what is computed, whoever calls it.
_exact = kernel(finite=False, reordered=False)


@_exact
def _bits(place: Any, first: Any, second: Any) -> Any:
    x = np.uint32(place) ^ first
    x = np.uint32(x ^ np.uint32(x >> np.uint32(16)))
    x = np.uint32(np.uint32(x * _MIX) + second)
    x = np.uint32(x ^ np.uint32(x >> np.uint32(15)))
    x = np.uint32(x * _MORE)
    return np.uint32(x ^ np.uint32(x >> np.uint32(16)))


@_exact
def _shut_odds(a: Any) -> Any:
    y = min(max(a, -_FAR), _FAR) * _LOG2E
    shifted = y + _MAGIC
    f = y - (shifted - _MAGIC)
    power = np.uint32(np.uint32(np.float32(shifted).view(np.uint32) - _MAGIC_BITS) << np.uint32(23)).view(np.float32)
    total = ((((((_S6 * f + _S5) * f + _S4) * f + _S3) * f + _S2) * f + _S1) * f) + _S0
    return total * power


@_exact
def _draw(a: Any, begin: Any, first: Any, second: Any, out: Any) -> None:
    for i in range(a.size):
        count = np.float32(np.int32(_bits(begin + i, first, second) >> np.uint32(9))) + _HALF
        r = (np.float32(8388608.0) - count) * _shut_odds(a[i]) / count
        z = _ONE / (math.sqrt(r) * r + _ONE) * np.float32(1.2) - np.float32(0.1)
        out[i] = min(max(z, _ZERO), _ONE)


@_exact
def _slope(weight: Any, grad: Any, z: Any) -> Any:
    slope = grad * weight / z
    return slope if z > _ZERO and abs(slope) <= _LARGEST else _ZERO


@_exact
def _slope_of_gate(z: Any) -> Any:
    d = (z - _HALF) * _STEEP
    slope = (_ONE - d * d) * _WIDE
    return slope if _ZERO < z < _ONE else _ZERO


@kernel(finite=False)
def _survey(weight: Any, grad: Any, z: Any) -> Any:
    square, peak, moving = 0.0, np.int32(0), np.int32(0)
    for i in range(z.size):
        slope = _slope(weight[i], grad[i], z[i])
        pull = np.float64(slope) * np.float64(_slope_of_gate(z[i]))
        square += pull * pull
        peak = max(peak, np.float32(abs(slope)).view(np.int32))
        moving += np.int32(pull != 0.0)
    return square, peak, moving


@_exact
def _descend(
    a: Any,
    m16: Any,
    v16: Any,
    weight: Any,
    grad: Any,
    z: Any,
    near: Any,
    far: Any,
    factor: Any,
    charge: Any,
    rate: Any,
    correction: Any,
    begin: Any,
    key: Any,
    more: Any,
) -> None:
    for i in range(a.size):
        slope = _slope(weight[i], grad[i], z[i]) * near * far
        pull = slope * _slope_of_gate(z[i]) * factor
        odds = _shut_odds(a[i]) * _SHUT_ODDS
        q = _ONE / (odds + _ONE)
        gradient = pull + odds * q * q * charge
        m, v = (
            np.uint32(np.uint32(m16[i]) << np.uint32(16)).view(np.float32),
            np.uint32(np.uint32(v16[i]) << np.uint32(16)).view(np.float32),
        )
        m = m + (gradient - m) * _NEW_FIRST
        v = v * _SECOND + gradient * _NEW_SECOND * gradient
        root = max(np.float32(math.sqrt(v * correction)), _LEAST)
        a[i] = min(max(a[i] - m / root * rate, _LOW), _HIGH)
        bits = _bits(begin + i, key, more)
        m16[i] = np.uint16(
            np.uint32(np.float32(m).view(np.uint32) + np.uint32(bits & np.uint32(0xFFFF))) >> np.uint32(16)
        )
        v16[i] = np.uint16(np.uint32(np.float32(v).view(np.uint32) + np.uint32(bits >> np.uint32(16))) >> np.uint32(16))


@dataclass(frozen=True)
class EntrySlopes(eager.Slopes):
    """Slopes of single weights, computed while they are used; in their place are the weights' gradients."""

    weight: Tensor

    @property
    def _arrays(self) -> tuple[Array, Array, Array]:
        return _flat(self.weight), _flat(self.slopes), _flat(self.gates)

    def survey(self) -> eager.Survey:
        """Look at the slopes of the loss by the gates."""
        w, g, z = self._arrays
        parts = list(ranges(z.size))
        found = on_threads(lambda p: _survey(w[slice(*p)], g[slice(*p)], z[slice(*p)]), parts)
        peak = torch.tensor(float(np.int32(max(peak for _, peak, _ in found)).view(np.float32)), dtype=torch.float64)
        square = math.fsum(square for square, _, _ in found) / float(eager.power_below(peak)) ** 2
        moving = float(sum(moving for _, _, moving in found))
        return eager.Survey(peak, *(torch.tensor(n, dtype=torch.float64) for n in (square, moving)))

    def descend(
        self, log_alpha: Tensor, first: Tensor, second: Tensor, charge: Tensor, begin: int, step: eager.Descent
    ) -> None:
        """Take a step with the gates, in place; all are charged alike."""
        w, g, z = self._arrays
        a, m, v = _flat(log_alpha), _flat(first.view(torch.int16)), _flat(second.view(torch.int16))
        m, v = m.view(np.uint16), v.view(np.uint16)
        # In two steps: one over the unit may be no number of float32.
        exponent = round(math.log2(float(step.unit)))
        near = -exponent // 2
        numbers = [np.float32(2.0**near), np.float32(2.0 ** (-exponent - near))]
        numbers += [np.float32(n) for n in (float(step.factor), float(charge), step.rate, step.correction)]

        def work(part: tuple[int, int]) -> None:
            p = slice(*part)
            _descend(a[p], m[p], v[p], w[p], g[p], z[p], *numbers, begin + part[0], *_halves(step.key))

        on_threads(work, list(ranges(z.size)))


def draw_all(log_alpha: Tensor, begin: int, key: eager.Key) -> Tensor:
    """A sample of the gates."""
    sample = torch.empty_like(log_alpha)
    a, z = _flat(log_alpha), _flat(sample)
    on_threads(lambda p: _draw(a[slice(*p)], begin + p[0], *_halves(key), z[slice(*p)]), list(ranges(a.size)))
    return sample


def _halves(key: eager.Key) -> tuple[np.uint32, np.uint32]:
    return np.uint32(key.first & 0xFFFFFFFF), np.uint32(key.second & 0xFFFFFFFF)


def _flat(tensor: Tensor) -> Array:
    array: Array = tensor.detach().reshape(-1).numpy()
    return array
