"""The sizes that spend a sparsity: each makes a layer hold 1 / (1 - s) times the entries of the dense one.

Source: V. Thangarasa, S. Saxena, A. Gupta, S. Lie, "Sparse-IFT: Sparse iso-FLOP transformations for maximizing training
efficiency", ICML 2024. A layer is told by its fan-in (inputs times kernel positions) and its fan-out, so that linear
layers and convolutions are one case. Sparsities are taken as the decimals that were typed: 0.9 leaves exactly 1 / 10.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor, isqrt, sqrt


def exact_sparsity(sparsity: float) -> Fraction:
    """A sparsity as the decimal number that it was typed as.

    Raises:
        ValueError: if it does not lie strictly between 0 and 1.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0.0 < sparsity < 1.0:
        raise ValueError(f"sparsity={sparsity!r} must lie strictly between 0 and 1 (0.75 means that 75 % is zero)")
    return Fraction(repr(float(sparsity)))


def wide_factor(sparsity: float) -> float:
    """By how much sparse wide multiplies the inputs and the outputs of a layer: `sqrt(1 / (1 - s))`."""
    return sqrt(1 / (1 - exact_sparsity(sparsity)))


def wide_size(size: int, sparsity: float) -> int:
    """What sparse wide makes of an axis: the largest whole size of at most `sqrt(1 / (1 - s))` times the old one."""
    # floor(sqrt(x)) is floor(sqrt(floor(x))).
    return isqrt(floor(size * size / (1 - exact_sparsity(sparsity))))


def parallel_branches(sparsity: float) -> int:
    """How many copies of a layer sparse parallel adds up: the whole number nearest to `1 / (1 - s)`."""
    return round(1 / (1 - exact_sparsity(sparsity)))


def factorized_rank(fan_in: int, fan_out: int, sparsity: float) -> int:
    """The inner size of sparse factorized: `fan_in fan_out / ((1 - s) (fan_in + fan_out))`, rounded up."""
    return ceil(fan_in * fan_out / ((1 - exact_sparsity(sparsity)) * (fan_in + fan_out)))


def doped_rank(fan_in: int, fan_out: int, sparsity: float) -> int:
    """The rank beside the sparse layer of sparse doped: `s fan_in fan_out / (fan_in + fan_out)`, rounded down."""
    return floor(exact_sparsity(sparsity) * fan_in * fan_out / (fan_in + fan_out))
