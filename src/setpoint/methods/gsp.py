"""Grouped Sparse Projection as a training method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from setpoint.budget import Target
from setpoint.functional.gsp import gsp_factors, mean_hoyer
from setpoint.functional.gsp_fast import WarmStart
from setpoint.functional.values import Entries, Values
from setpoint.methods.base import Method, Units, check_weights
from setpoint.optimizer_set import OptimizerSet
from setpoint.options import choice
from setpoint.reading import placed
from setpoint.units import Layer, Partition, VectorKind

Measure = Literal["zeros", "hoyer"]

# Of a vector of one entry, in the place of none: that of one of two.
_SLACK_OF_ONE = 2**0.5 - 1.0


@dataclass(frozen=True)
class GroupedSparseProjection(Method):
    """Project the units onto a sparser set every few steps, and let them grow back in between.

    The layers that share a budget form the set (all of them under `scope="global"`, one each under `"uniform"`), and
    `vectors` says what its vectors are. The vectors' entries are the magnitudes of the units. One multiplier mu gives
    all thresholds: an entry goes where it is at most mu times its vector's threshold (R. Ohib et al., "Explicit group
    sparse projection", TMLR 2022).

    Attributes:
        measure: what mu is solved for: `"zeros"`, that the units left meet the budget; or `"hoyer"`, that the average
            Hoyer sparsity meets the target's `hoyer`, as in the paper. There the support at the end is what the
            projection leaves, or what a budget given as well cuts out of it. By default `"hoyer"` if the target
            names one.
        vectors: `"layer"`, `"row"` (filters, neurons), `"column"` (input channels) or `"kernel"`. Where such a vector
            would have a single unit (the kernels of a 1x1 convolution), a layer takes the next larger kind.
        scale_invariant: compare the vectors at unit length, so that no layer goes for being small. For `"zeros"` the
            threshold is then the vector's norm. The paper's form (False) has `1 / (sqrt(n) - 1)` at any norm, which
            drives short vectors and those of small norm down to their floor.
        debias: leave what survives a projection to zeros as it was. The paper's map (False) subtracts the threshold
            from every survivor and rescales the vector to the best multiple of what is left; repeated over a short
            run that costs accuracy (see benchmarks/results). A projection to a Hoyer sparsity is always the paper's.
        weights: per parameter name, non-negative weights of its units (shaped as the parameter for single weights,
            otherwise broadcastable to the partition's counts): units of larger weight go first. Others have weight 1.
    """

    measure: Measure | None = None
    vectors: VectorKind = "layer"
    scale_invariant: bool = True
    debias: bool = True
    weights: Mapping[str, Tensor] | None = None

    name: ClassVar[str] = "gsp"

    def check(self, layers: Sequence[Layer], target: Target | None, optimizers: OptimizerSet) -> None:
        """Refuse measures, vectors and weights that do not go with the layers and the target."""
        if self.measure is not None:
            choice("gsp measure", self.measure, get_args(Measure))
        choice("gsp vectors", self.vectors, get_args(VectorKind))
        wanted = None if target is None else target.hoyer
        if self.measure == "hoyer" and wanted is None:
            raise ValueError("measure='hoyer' needs a target that names one: target=Target(hoyer=0.9)")
        if self.measure == "zeros" and wanted is not None:
            raise ValueError(f"measure='zeros' cannot meet a target hoyer={wanted}: leave the measure out")
        lengths = {layer.name: self._length(layer.partition, self._kind(layer.partition)) for layer in layers}
        if all(length < 2 for length in lengths.values()):
            raise ValueError(f"every layer is a single unit ({', '.join(lengths)}): choose smaller units")
        check_weights(self.weights, layers)
        partitions = {layer.name: layer.partition for layer in layers}
        for name, weights in (self.weights or {}).items():
            _check_shape(name, weights, partitions[name])

    def scores(self, units: Units) -> Sequence[Tensor | Values]:
        """The mu at which the projection takes each unit; magnitudes where a Hoyer sparsity rules."""
        if _hoyer(units) is not None:
            return units.values
        return self._ratios(units)

    def factors(self, units: Units) -> Sequence[Tensor | None]:
        """The projection for the present budget or level, divided by the magnitudes."""
        level = _hoyer(units)
        return self._budget_factors(units) if level is None else self._hoyer_factors(units, level * units.ramp)

    def keep(self, units: Units) -> Sequence[Tensor]:
        """The cut of the budget; for a Hoyer sparsity alone, what its projection leaves."""
        level = _hoyer(units)
        if level is None or (units.target is not None and units.target.has_budget):
            return units.cut(self.scores(units))
        factors = self._hoyer_factors(units, level)
        return [m > 0 if f is None else f > 0 for f, m in zip(factors, units.magnitudes)]

    def settles(self, target: Target | None) -> bool:
        """A Hoyer sparsity must be held while the survivors train."""
        return target is not None and target.hoyer is not None

    def settle(self, units: Units) -> Sequence[Tensor | None]:
        """Project the survivors back to the Hoyer sparsity."""
        level = _hoyer(units)
        return super().settle(units) if level is None else self._hoyer_factors(units, level)

    def measured(self, units: Units) -> float | None:
        """The average Hoyer sparsity of the vectors."""
        return mean_hoyer(self._rows(units), self._spreads(units) if self.weights else None)

    def _hoyer_factors(self, units: Units, level: float) -> list[Tensor | None]:
        weights = self._spreads(units) if self.weights else None
        # Between two updates the vectors change little.
        warm = WarmStart(units.memory.get("multiplier"))
        factors = gsp_factors(self._rows(units), level, weights, scale_invariant=self.scale_invariant, warm=warm)
        if warm.multiplier is not None:
            units.memory["multiplier"] = warm.multiplier
        return [None if f is None else self._unrow(p, f) for p, f in zip(units.partitions, factors)]

    def _budget_factors(self, units: Units) -> list[Tensor]:
        kept = units.cut(self._ratios(units))
        if self.debias:
            return kept
        rows = self._rows(units)
        thresholds = self._thresholds(units, rows)
        kept = [self._row(p, k) for p, k in zip(units.partitions, kept)]
        mu = _multiplier(rows, thresholds, kept)
        factors = [_shrunk(a, mu * t, k) for a, t, k in zip(rows, thresholds, kept)]
        return [self._unrow(p, f) for p, f in zip(units.partitions, factors)]

    def _kind(self, partition: Partition) -> VectorKind:
        """The kind of a layer's vectors: the one asked for, or the next larger of at least two units."""
        chain: list[VectorKind] = (
            [self.vectors, "row", "layer"] if self.vectors == "kernel" else [self.vectors, "layer"]
        )
        return next((kind for kind in chain if self._length(partition, kind) > 1), "layer")

    def _length(self, partition: Partition, kind: VectorKind) -> int:
        return partition.vectors(torch.empty(partition.counts, device="meta"), kind).shape[1]

    def _row(self, partition: Partition, values: Tensor) -> Tensor:
        """One value a unit, arranged as a matrix whose rows are the vectors."""
        return partition.vectors(values, self._kind(partition))

    def _unrow(self, partition: Partition, rows: Tensor) -> Tensor:
        return partition.from_vectors(rows, self._kind(partition))

    def _rows(self, units: Units) -> list[Tensor]:
        """The vectors as the rows of matrices."""
        return [self._row(p, m) for p, m in zip(units.partitions, units.magnitudes)]

    def _ratios(self, units: Units) -> Sequence[Tensor | Values]:
        """The mu at which each unit meets its threshold."""
        if not self.weights and all(self._kind(p) == "layer" for p in units.partitions):
            return [v.over(self._threshold(v)) for v in units.values]
        rows = self._rows(units)
        ratios = [a / t for a, t in zip(rows, self._thresholds(units, rows))]
        return [self._unrow(p, ratio) for p, ratio in zip(units.partitions, ratios)]

    def _threshold(self, values: Entries) -> Tensor:
        """The same threshold for all entries of a layer that is one vector, without weights."""
        norm = values.norm()
        if not self.scale_invariant:
            slack = max(math.sqrt(values.numel()) - 1.0, 0.0)
            return torch.full_like(norm, 1.0 / (slack or _SLACK_OF_ONE))
        return norm.masked_fill(norm == 0, 1.0).clamp_min(1e-30)

    def _thresholds(self, units: Units, rows: Sequence[Tensor]) -> list[Tensor]:
        """What mu = 1 takes off each entry, arranged as the rows."""
        thresholds = []
        for a, weights in zip(rows, self._spreads(units)):
            if self.scale_invariant:
                norm = torch.linalg.vector_norm(a, dim=1, keepdim=True)
                scale = norm.masked_fill(norm == 0, 1.0)
            else:
                slack = torch.linalg.vector_norm(weights, dim=1, keepdim=True) - weights.amin(1, keepdim=True)
                # A vector of one unit has no Hoyer sparsity; it competes as one of two would.
                scale = 1.0 / slack.masked_fill(slack <= 0, _SLACK_OF_ONE)
            # Not zero where a weight is: such a unit is the last to go.
            thresholds.append((scale * weights).to(a.dtype).clamp_min(1e-30))
        return thresholds

    def _spreads(self, units: Units) -> list[Tensor]:
        """The user's weights of the units, arranged as the rows."""
        spreads = []
        for name, partition, like in zip(units.names, units.partitions, units.magnitudes):
            weights = (self.weights or {}).get(name, torch.ones(()))
            spread = _spread(placed(weights, like.device), partition)
            spreads.append(self._row(partition, spread))
        return spreads


def _spread(weights: Tensor, partition: Partition) -> Tensor:
    """One weight a unit."""
    if weights.ndim and tuple(weights.shape) == partition.layout.shape != partition.counts:
        weights = partition.magnitudes(weights)
    return weights.double().expand(partition.counts)


def _check_shape(name: str, weights: Tensor, partition: Partition) -> None:
    try:
        _spread(weights, partition)
    except RuntimeError:
        raise ValueError(
            f"the weights of {name!r} have shape {tuple(weights.shape)}; possible: the parameter's, or what "
            f"broadcasts to its units, {partition.counts}"
        ) from None


def _hoyer(units: Units) -> float | None:
    return None if units.target is None else units.target.hoyer


def _shrunk(rows: Tensor, tau: Tensor, kept: Tensor) -> Tensor:
    """Factors of the soft threshold, each row rescaled to the best multiple of what is left."""
    v = torch.where(kept, (rows - tau).clamp_min(0.0), 0.0)
    square = v.square().sum(1, keepdim=True)
    gain = (rows * v).sum(1, keepdim=True) / square.masked_fill(square == 0, 1.0)
    # Nothing over the threshold, as where all units tie: what is kept stays as it is.
    return torch.where(square == 0, kept.to(rows.dtype), v * gain / rows.masked_fill(rows == 0, 1.0))


def _multiplier(rows: Sequence[Tensor], thresholds: Sequence[Tensor], kept: Sequence[Tensor]) -> float:
    """The mu of the cut: it takes the largest unit that goes and no unit that stays."""
    gone, stays = 0.0, float("inf")
    for a, t, k in zip(rows, thresholds, kept):
        if a.numel():
            ratio = a / t
            gone = max(gone, float(torch.where(k, 0.0, ratio).max()))
            stays = min(stays, float(torch.where(k & (a > 0), ratio, torch.inf).min()))
    # With unequal costs or a floor, a unit that stays may lie below one that goes; it must not vanish.
    return gone if gone < stays else stays * 0.999 if stays < float("inf") else 0.0
