"""What a run reached: what was asked, what is attainable in whole units and what is achieved, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from setpoint.budget import Budget, Cost, Phase, Scope, Target
from setpoint.reading import count
from setpoint.report_text import in_text
from setpoint.units import Layer

# Of an average Hoyer sparsity, which is solved for in floating point.
HOYER_SLACK = 1e-6


@dataclass(frozen=True)
class LayerReport:
    """One layer. Zeros are counted in the parameters themselves, not in a mask.

    Attributes:
        name: of the parameter, or of the group of units that cross layers.
        tensor: name of its parameter, of a group the first.
        shape: of that parameter.
        units: how many units it has; of an N:M pattern its groups of M weights.
        units_kept: how many are left; of an N:M pattern the groups that are not pruned to N weights.
        params: how many entries its units have, those that they share with other groups' units included: added up over
            groups, these count twice. `Report.params` counts each once.
        params_kept: how many of them are not zero.
        requested: fraction of its cost asked to go, where the layer has a budget of its own.
        gone: names of the units that are not left, where units have names.
    """

    name: str
    tensor: str
    shape: tuple[int, ...]
    units: int
    units_kept: int
    params: int
    params_kept: int
    requested: float | None
    gone: tuple[str, ...] = ()

    @classmethod
    def of(cls, layer: Layer, kept: Tensor, requested: float | None) -> LayerReport:
        """Count in the parameter as it is now; `kept` says which units are left."""
        parameters = {part.name: part.parameter for part in layer.parts}  # which units may lie along two axes of
        left = count(parameters.values())
        entries = sum(parameter.numel() for parameter in parameters.values())
        gone = tuple(name for name, stays in zip(layer.names, kept.flatten().tolist()) if not stays)
        return cls(
            layer.name, layer.parts[0].name, layer.shape, kept.numel(), int(kept.sum()), entries, left, requested, gone
        )

    @property
    def sparsity(self) -> float:
        """Fraction of the entries that are zero."""
        return 1.0 - self.params_kept / self.params


@dataclass(frozen=True)
class BudgetReport:
    """One budget and what is left of it.

    Attributes:
        layers: names of the parameters that share it.
        total: cost of everything.
        budget: cost that may stay, after rounding to what is achievable.
        kept: cost that stays.
        requested: fraction asked to go, as it was given.
        attainable: fraction that goes where what stays costs `budget`: what was asked for, rounded to whole units where
            all cost the same.
        cheapest_gone: cost of the cheapest unit that went (or step of width, where widths are rounded); None if all
            stay.
        hoyer: average Hoyer sparsity of the units that share it, where one was asked for.
        hoyer_asked: the one that was asked for.
    """

    layers: tuple[str, ...]
    total: float
    budget: float
    kept: float
    requested: float
    attainable: float
    cheapest_gone: float | None
    hoyer: float | None = None
    hoyer_asked: float | None = None

    @classmethod
    def of(
        cls,
        budget: Budget,
        layers: Sequence[Layer],
        kept: Sequence[Tensor],
        hoyer: float | None = None,
        hoyer_asked: float | None = None,
    ) -> BudgetReport:
        """Add up what is left; `kept` says for all layers which units are."""
        stays = [kept[i].cpu() for i in budget.layers]
        names = tuple(layers[i].name for i in budget.layers)
        kept_cost, more = budget.spent(stays), budget.next_cost(stays)
        asked, attainable = budget.requested, budget.attainable
        return cls(names, budget.total, budget.kept, kept_cost, asked, attainable, more, hoyer, hoyer_asked)

    @property
    def exact(self) -> bool:
        """Whether the budget is kept and one more unit would break it.

        Beside a Hoyer sparsity, which takes what zeros it needs, whether both are reached.
        """
        slack = max(1e-9, 2e-12 * self.total)
        if self.hoyer_asked is None:
            full = self.cheapest_gone is None or self.kept + self.cheapest_gone > self.budget + slack
        else:
            full = self.hoyer is not None and self.hoyer >= self.hoyer_asked - HOYER_SLACK
        return self.kept <= self.budget + slack and full

    @property
    def achieved(self) -> float:
        """Fraction of the cost that went."""
        return 1.0 - self.kept / self.total

    def in_words(self, cost: Cost) -> str:
        """What may stay, what stays, and what the next unit or step of width would cost: nothing lies between."""
        unit = "ms" if cost == "latency_ms" else cost
        more = (
            ""
            if self.cheapest_gone is None
            else f"; the cheapest unit or step more costs {_number(self.cheapest_gone)}"
        )
        return f"budget: {_number(self.budget)} of {_number(self.total)} {unit}, {_number(self.kept)} kept{more}"


@dataclass(frozen=True)
class LatencyReport:
    """A budget in milliseconds.

    Attributes:
        device: where it was measured.
        dense: what the whole model takes.
        requested: what was asked for.
        predicted: by the table of the operations' latencies, for what stays.
        measured: on a model of the sizes that the final cut left; None before.
    """

    device: str
    dense: float
    requested: float
    predicted: float
    measured: float | None

    def __str__(self) -> str:
        measured = "not yet measured" if self.measured is None else f"{self.measured:.3f} measured"
        asked = f"{self.requested:.3f} ms asked for, {self.predicted:.3f} predicted, {measured}"
        return f"latency on {self.device}: {asked} (dense {self.dense:.3f})"


@dataclass(frozen=True)
class Report:
    """State of a run.

    Attributes:
        method, target, unit, scope: what was asked, in words.
        cost: what the budgets count.
        step, steps, phase: where the run is.
        layers: the parameters made sparse.
        budgets: what was to be met.
        params: entries of all layers' parameters, each counted once.
        params_kept: those that are not zero.
        left_dense: every other parameter of two or more axes, and why it stays dense.
        left_params: how many entries each of them has.
        model_params: entries of all of the model's parameters, each counted once.
        differences: by parameter, how the model is not what the run left in it; any makes `exact` false.
        detached: by parameter, why the run's optimizers do not train it any more.
        hoyer: average Hoyer sparsity reached, where one was asked for.
        hoyer_asked: the one that was asked for.
        latency: of a target in milliseconds.
        skipped_steps: optimizer steps skipped for gradients that were not finite.
    """

    method: str
    target: str
    unit: str
    scope: str
    cost: Cost
    step: int
    steps: int
    phase: Phase
    layers: tuple[LayerReport, ...]
    budgets: tuple[BudgetReport, ...]
    params: int
    params_kept: int
    model_params: int
    left_dense: dict[str, str]
    left_params: dict[str, int]
    differences: dict[str, str]
    detached: dict[str, str]
    hoyer: float | None
    hoyer_asked: float | None
    latency: LatencyReport | None
    skipped_steps: int

    @property
    def sparsity(self) -> float:
        """Fraction of all layers' entries that are zero."""
        return 1.0 - self.params_kept / self.params

    @property
    def coverage(self) -> float:
        """Fraction of the model's parameters that the layers reach into."""
        return self.params / self.model_params

    @property
    def requested(self) -> float:
        """Fraction of the cost asked to go, over all budgets."""
        return sum(b.requested * b.total for b in self.budgets) / sum(b.total for b in self.budgets)

    @property
    def attainable(self) -> float:
        """Fraction of the cost that goes when every budget is met in whole units, over all budgets."""
        return 1.0 - sum(b.budget for b in self.budgets) / sum(b.total for b in self.budgets)

    @property
    def achieved(self) -> float:
        """Fraction of the cost that went, over all budgets."""
        return 1.0 - sum(b.kept for b in self.budgets) / sum(b.total for b in self.budgets)

    @property
    def exact(self) -> bool:
        """Whether the model holds what the run left, every budget is met, and none could keep one more unit.

        Where an average Hoyer sparsity was asked for, whether it is reached within each budget. It is held once the run
        is frozen, not before.
        """
        held = self.hoyer_asked is None or self.phase == "frozen"
        return held and not self.differences and all(b.exact for b in self.budgets)

    @property
    def shortfall(self) -> str:
        """Which budgets are not met by the model as it is, in words; empty if all are."""
        missed = [budget for budget in self.budgets if not budget.exact]
        return "; ".join(f"{', '.join(budget.layers)}: {self._state_of(budget)}" for budget in missed)

    def _state_of(self, budget: BudgetReport) -> str:
        if budget.hoyer is None:
            return budget.in_words(self.cost)
        hoyer = f"average Hoyer sparsity {budget.hoyer:.6f}, {budget.hoyer_asked:g} asked for"
        return f"{budget.in_words(self.cost)}; {hoyer}" if budget.requested > 0.0 else hoyer

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        totals = {k: getattr(self, k) for k in ("sparsity", "requested", "attainable", "achieved", "exact")}
        out = asdict(self) | totals
        for row, layer in zip(out["layers"], self.layers):
            row["sparsity"] = layer.sparsity
        for row, budget in zip(out["budgets"], self.budgets):
            row |= {"exact": budget.exact, "achieved": budget.achieved}
        return out

    def __str__(self) -> str:
        return in_text(self)


def in_words(target: Target | None, scope: Scope) -> str:
    """What was asked for."""
    whole = "all that the pattern allows" if target is None else str(target)
    if isinstance(scope, str):
        return whole
    named = ", ".join(f"{glob}: {100 * sparsity:.6g} % go" for glob, sparsity in scope.items())
    return named if target is None else f"{named}, others: {whole}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.3f}"
