"""The search of `monotone_root`, where the function's values stay on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Search:
    """How far a search has come; all are tensors of one number, float64 or bool.

    Attributes:
        x: the next point; the answer where `converged`.
        lower, upper: as in `setpoint.functional.root.Root`.
        error: of the function's last value.
        converged: whether it was within the tolerance.
    """

    x: Tensor
    lower: Tensor
    upper: Tensor
    error: Tensor
    converged: Tensor

    @classmethod
    def of(cls, lower: Tensor, upper: Tensor, start: Tensor) -> Search:
        """Begin at a point, or in the middle where it lies outside the bracket."""
        inside = (start > lower) & (start < upper)
        x = torch.where(inside, start, _middle(lower, upper))
        return cls(x, lower, upper, torch.full_like(x, torch.inf), torch.zeros_like(x, dtype=torch.bool))

    def advanced(
        self, function: Callable[[Tensor], tuple[Tensor, Tensor]], level: float, tolerance: float, evaluations: int
    ) -> Search:
        """Go on by so many evaluations of a non-increasing function and its slope; past the answer nothing moves."""
        search = self
        for _ in range(evaluations):
            search = search._step(*function(search.x), level, tolerance)
        return search

    def _step(self, value: Tensor, slope: Tensor, level: float, tolerance: float) -> Search:
        excess = value - level
        error = excess.abs()
        converged = self.converged | (error <= tolerance)
        above = excess > 0
        lower, upper = torch.where(above, self.x, self.lower), torch.where(above, self.upper, self.x)
        newton = self.x - excess / slope
        good = (slope < 0) & (error <= 0.5 * self.error) & (newton > lower) & (newton < upper)
        x = torch.where(good, newton, _middle(lower, upper))
        return Search(
            torch.where(converged, self.x, x),
            torch.where(converged, self.lower, lower),
            torch.where(converged, self.upper, upper),
            error,
            converged,
        )


def _middle(lower: Tensor, upper: Tensor) -> Tensor:
    """The double halfway between two that are not negative, in their order rather than in their value."""
    first, last = lower.view(torch.int64), upper.view(torch.int64)
    return (first + (last - first) // 2).view(torch.float64)
