"""Which fraction of each group the sparse envelope counts: one piecewise linear equation over all groups.

Value and proximal maps of the envelope share it. Group j holds `u_j(alpha) = clip((alpha c_j - rho_j) / s_j, 0, 1)`,
and alpha is where `sum_j d_j u_j(alpha)` meets the budget. The root finder narrows alpha down; groups that are zero,
whole or linear between the two ends are then summed up once and left alone, so the work shrinks with the bracket. It
ends when no kink is left inside, and interpolates: the fractions meet the budget to rounding, and ties share equally.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from setpoint.functional.root import monotone_root

# Up to so many groups are brought together and searched on the CPU; from more, a sample gives the first bracket.
_FEW = 32_768
_SAMPLE = 8_192
# Groups worked on at once on a CPU, so that a piece stays in its cache.
_PIECE = 65_536
# Evaluations between two reductions of the groups still searched, while there are many.
_ROUND = 4
# Where the cost is this near to the budget (relative), look for the ends of the linear piece ...
_NEAR = 1e-13
# ... this far on both sides of alpha (relative).
_PROBE = 1e-9
_HUGE = 1e300


@dataclass(frozen=True)
class Ramps:
    """The groups of one tensor, each with its ramp `u = clip((alpha c - rho) / s, 0, 1)`; all float64.

    Attributes:
        score: c >= 0; groups of score 0 stay at 0.
        offset, width, cost: rho >= 0, s > 0 and d >= 0, each a number or one value a group.
    """

    score: Tensor
    offset: Tensor
    width: Tensor
    cost: Tensor

    def fractions(self, alpha: float) -> Tensor:
        """The u of every group at alpha."""
        return self._lifted(alpha).div_(self.width).clamp_(0.0, 1.0)

    def total(self) -> float:
        """Cost of all groups that can be more than zero."""
        alive = self.score > 0
        return float((alive * self.cost).sum()) if self.cost.ndim else int(alive.sum()) * float(self.cost)

    def spent(self, alpha: float) -> float:
        """Cost at alpha."""
        return float((self.fractions(alpha) * self.cost).sum())

    def spent_and_slope(self, alpha: float) -> tuple[float, float]:
        """Cost at alpha and its derivative."""
        u = self.fractions(alpha)
        rising = (u > 0) & (u < 1)
        slope = (rising * self.score).mul_(self.cost / self.width).sum()
        spent, steep = torch.stack([(u * self.cost).sum(), slope]).tolist()
        return spent, steep

    def ends(self) -> tuple[float, float]:
        """An alpha at which every group is still zero, and one at which all are whole (or as near as doubles go)."""
        if not bool((self.score > 0).any()):
            return math.inf, 0.0
        last = ((self.width + self.offset) / self.score).masked_fill_(self.score == 0, 0.0)
        first, last = torch.stack([self.offset.min() / self.score.max(), last.max()]).tolist()
        return first * (1.0 - 1e-15), min(last * (1.0 + 1e-15), _HUGE)

    def unclipped(self) -> tuple[float, float]:
        """Slope of the cost in alpha and what is taken off it, were no group clipped."""
        rate, alive = self.cost / self.width, self.score > 0
        slope, offset = torch.stack([(self.score * rate).sum(), (alive * (self.offset * rate)).sum()]).tolist()
        return slope, offset

    def pieces(self) -> list[Ramps]:
        """The groups in rows of a size that a CPU's cache can hold."""
        if self.score.numel() <= _PIECE or self.score.device.type != "cpu":
            return [self]
        rows = torch.split(self.score.flatten(), _PIECE)
        rest = (_split(t, self.score, len(rows)) for t in (self.offset, self.width, self.cost))
        return [Ramps(*fields) for fields in zip(rows, *rest)]

    def picked(self, mask: Tensor) -> Ramps:
        """Some of the groups, in a row."""
        return Ramps(self.score[mask], *(_picked(t, mask) for t in (self.offset, self.width, self.cost)))

    def sampled(self, stride: int) -> Ramps:
        """Every so many-th group."""
        mask = torch.zeros(self.score.numel(), dtype=torch.bool, device=self.score.device)
        mask[::stride] = True
        return self.picked(mask.view(self.score.shape))

    def decided(self, lower: float, upper: float) -> tuple[float, float, float, Tensor]:
        """Cost of the groups that are whole from `lower` on, of those linear between the ends at either end, the rest.

        The rest is a mask of the groups that have a kink between the ends.
        """
        low, high = self._lifted(lower), self._lifted(upper)
        whole = low >= self.width
        linear = (low >= 0) & (high <= self.width) & ~whole
        rest = (high > 0) & ~whole & ~linear
        rate = self.cost / self.width
        at_ends = [lifted.masked_fill_(~linear, 0.0).mul_(rate).sum() for lifted in (low, high)]
        spent, below, above = torch.stack([(whole * self.cost).sum(), *at_ends]).tolist()
        return spent, below, above, rest

    def _lifted(self, alpha: float) -> Tensor:
        return self.score.mul(alpha).sub_(self.offset)


@dataclass(frozen=True)
class Crossing:
    """Where the budget is met: a fraction `theta` of the way between two points with no kink between them."""

    lower: float
    upper: float
    theta: float

    def fractions(self, ramps: Ramps) -> Tensor:
        """The u of every group."""
        pieces = ramps.pieces()
        if len(pieces) == 1:
            return self._of_piece(ramps)
        return torch.cat([self._of_piece(piece) for piece in pieces]).view(ramps.score.shape)

    def _of_piece(self, piece: Ramps) -> Tensor:
        low = piece.fractions(self.lower)
        return low if self.theta == 0.0 else low.lerp_(piece.fractions(self.upper), self.theta)


def crossing(ramps: Sequence[Ramps], level: float, total: float) -> Crossing:
    """Find where the cost of all groups is `level`, which lies between 0 and their total cost.

    Where the cost is flat at the level, a point of the flat piece is answered, so that whole groups are exactly 1 and
    the others exactly 0.
    """
    return _crossing(_Search.of(ramps, level, total))


def crossing_between(
    ramps: Sequence[Ramps], lower: float, upper: float, below: float, above: float, level: float, budget: float
) -> Crossing:
    """The same where all but some groups have been summed up: those without a kink between two alphas.

    Args:
        ramps: of the groups that are left.
        lower, upper: the alphas.
        below, above: cost, at either, of the groups that are linear between them.
        level: what the budget leaves to all but the groups that are whole.
        budget: in all.
    """
    return _crossing(_Search(tuple(ramps), lower, upper, below, above, level, _NEAR * budget))


def _crossing(search: _Search) -> Crossing:
    start = search.guess() if 0 < search.count <= _FEW else None
    tolerance = search.snap
    while search.count and math.nextafter(search.lower, math.inf) < search.upper:
        few = search.count <= _FEW
        search = search.merged() if few else search
        root = monotone_root(
            search.excess,
            search.lower,
            search.upper,
            level=-search.level,
            tolerance=tolerance,
            start=start,
            max_evaluations=200 if few else _ROUND,
        )
        if root.converged and (tolerance == 0.0 or search.excess(root.x)[1] == 0.0):
            return Crossing(root.x, root.x, 0.0)
        lower, upper = search.around(root.x, root.lower, root.upper) if root.converged else (root.lower, root.upper)
        if lower == upper:
            return Crossing(lower, upper, 0.0)
        search = search.within(lower, upper)
        start, tolerance = None, 0.0 if root.converged else tolerance
    return search.interpolated()


@dataclass(frozen=True)
class _Search:
    """The groups with a kink between `lower` and `upper`, and the sums over those without.

    Attributes:
        below, above: cost, at either end, of the groups that are linear between them.
        level: what the budget leaves to all but the groups that are whole.
        snap: a flat piece this near to the level counts as being there.
    """

    ramps: tuple[Ramps, ...]
    lower: float
    upper: float
    below: float
    above: float
    level: float
    snap: float

    @classmethod
    def of(cls, ramps: Sequence[Ramps], level: float, total: float) -> _Search:
        pieces = tuple(piece for r in ramps for piece in r.pieces())
        first, last = zip(*(piece.ends() for piece in pieces))
        search = cls(pieces, min(min(first), max(last)), max(last), 0.0, 0.0, level, _NEAR * level)
        many = search.count > _FEW and search.lower < search.upper
        return search.within(*_sampled_bracket(search, total)) if many else search

    @property
    def count(self) -> int:
        return sum(r.score.numel() for r in self.ramps)

    def excess(self, alpha: float) -> tuple[float, float]:
        """Cost at alpha and its slope, both negated: the root finder wants a falling function."""
        width = self.upper - self.lower
        spent = self.below + (self.above - self.below) * ((alpha - self.lower) / width)
        slope = (self.above - self.below) / width
        for ramps in self.ramps:
            more, steeper = ramps.spent_and_slope(alpha)
            spent, slope = spent + more, slope + steeper
        flat = slope == 0.0 and abs(spent - self.level) <= self.snap
        return (-self.level, 0.0) if flat else (-spent, -slope)

    def guess(self) -> float:
        """Where the level would be met, were no group clipped."""
        lines = [r.unclipped() for r in self.ramps]
        return (self.level + sum(offset for _, offset in lines)) / (sum(slope for slope, _ in lines) or 1.0)

    def around(self, x: float, lower: float, upper: float) -> tuple[float, float]:
        """Ends close to x with the level between them; twice the same where a flat piece meets the level."""
        for point in (x * (1.0 - _PROBE), x * (1.0 + _PROBE)):
            if lower < point < upper:
                value, slope = self.excess(point)
                if slope == 0.0 and value == -self.level:
                    return point, point
                lower, upper = (point, upper) if value > -self.level else (lower, point)
        return lower, upper

    def within(self, lower: float, upper: float) -> _Search:
        """Narrow the bracket and sum up what has no kink in it."""
        rise = (self.above - self.below) / (self.upper - self.lower or 1.0)
        below = self.below + rise * (lower - self.lower)
        above = self.above - rise * (self.upper - upper)
        level, left = self.level, []
        for ramps in self.ramps:
            spent, low, high, rest = ramps.decided(lower, upper)
            below, above, level = below + low, above + high, level - spent
            left.append(ramps.picked(rest))
        kinked = tuple(r for r in left if r.score.numel())
        return _Search(kinked, lower, upper, below, above, level, self.snap)

    def merged(self) -> _Search:
        """Bring the few groups left together on the CPU."""
        if len(self.ramps) == 1 and self.ramps[0].score.device.type == "cpu":
            return self
        fields = zip(*((r.score, r.offset, r.width, r.cost) for r in self.ramps))
        flat = [torch.cat([t.expand_as(r.score).flatten().cpu() for t, r in zip(f, self.ramps)]) for f in fields]
        return replace(self, ramps=(Ramps(*flat),))

    def interpolated(self) -> Crossing:
        low = self.below + sum(r.spent(self.lower) for r in self.ramps)
        high = self.above + sum(r.spent(self.upper) for r in self.ramps)
        theta = (self.level - low) / (high - low) if high > low else 0.0
        return Crossing(self.lower, self.upper, min(max(theta, 0.0), 1.0))


def _sampled_bracket(search: _Search, total: float) -> tuple[float, float]:
    """A narrow bracket guessed from an evenly spaced sample and confirmed on all groups."""
    lower, upper = search.lower, search.upper
    stride = max(1, search.count // _SAMPLE)
    few = [r.sampled(stride) for r in search.ramps]
    sampled = sum(r.total() for r in few)
    level = search.level / total * sampled
    spread = 2.0 * math.sqrt(sum(float((r.cost.square() * (r.score > 0)).sum()) for r in few))
    sample = replace(search, ramps=tuple(few), level=level).merged()
    for guess in (max(level - spread, 0.25 * level), min(level + spread, 0.75 * sampled + 0.25 * level)):
        root = monotone_root(
            sample.excess, search.lower, search.upper, level=-guess, tolerance=spread / 4, start=sample.guess()
        )
        if lower < root.x < upper:
            spent = sum(r.spent(root.x) for r in search.ramps)
            lower, upper = (root.x, upper) if spent < search.level else (lower, root.x)
    return lower, upper


def _picked(values: Tensor, mask: Tensor) -> Tensor:
    return values[mask] if values.ndim else values


def _split(values: Tensor, like: Tensor, count: int) -> Sequence[Tensor]:
    return torch.split(values.expand_as(like).flatten(), _PIECE) if values.ndim else [values] * count
