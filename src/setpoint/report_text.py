"""A run's report as text: a row a layer, and what was asked, is attainable and was achieved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from setpoint.units import skipped_in_words

if TYPE_CHECKING:
    from setpoint.report import BudgetReport, LayerReport, Report


def in_text(report: Report) -> str:
    """The report as lines of text."""
    title = f"{report.method}, {report.target}, unit {report.unit}, scope {report.scope}"
    lines = [f"{title}: step {report.step:,} of {report.steps:,}, {report.phase}", _covered(report)]
    lines += [f"NOT EXACT: {name}: {what}" for name, what in report.differences.items()]
    if report.phase == "frozen" and not report.differences and not report.exact:
        lines.append(f"NOT EXACT: {report.shortfall}")
    lines += [f"not trained by the run's optimizer: {name}: {what}" for name, what in report.detached.items()]
    lines += _aligned(_rows(report))
    lines += [_measured(report)] if _has_budget(report) else []
    lines += notes(report.unit, shared=sum(la.params for la in report.layers) > report.params)
    if report.phase == "frozen":
        several = [b for b in report.budgets if b.requested > 0.0 and (len(b.layers) > 1 or len(report.layers) == 1)]
        lines += [b.in_words(report.cost) for b in several]
    if report.latency is not None:
        lines.append(str(report.latency))
    if report.hoyer is not None:
        lines.append(f"average Hoyer sparsity {report.hoyer:.6f}")
    lines += [f"gone: {', '.join(la.gone)}" for la in report.layers if la.gone]
    return "\n".join([*lines, *skipped_in_words(report.left_dense, report.left_params, report.model_params)])


def _covered(report: Report) -> str:
    return f"covers {part_of(report.params, report.model_params)} of the model's parameters ({report.coverage:.1%})"


def notes(unit: str, *, shared: bool) -> list[str]:
    """What a reader of the counts must know.

    Args:
        unit: as reports name it.
        shared: whether some weights are counted in the rows of several layers.
    """
    found = []
    if is_pattern(unit):
        n, m = unit.split(":")
        found.append(f"a group of {m} weights that is pruned to {unit} keeps its {n} largest")
    if shared:
        found.append("weights that two groups of units share stand in the rows of both; all counts them once")
    return found


def is_pattern(unit: str) -> bool:
    """Whether the units are the groups of an N:M pattern."""
    return ":" in unit


def units_column(unit: str) -> str | None:
    """What the units are counted as; None where they are the weights."""
    return None if unit == "weight" else f"groups at {unit}" if is_pattern(unit) else "units kept"


def units_counted(unit: str, kept: int, total: int) -> str:
    """How many units stay, or of a pattern how many groups are pruned, and of how many."""
    return part_of(total - kept if is_pattern(unit) else kept, total)


def part_of(kept: int, total: int) -> str:
    """A number and what it is a part of."""
    return f"{kept:,} / {total:,}"


def _rows(report: Report) -> list[list[str]]:
    column, asked = units_column(report.unit), _has_budget(report)
    own = {b.layers[0]: b for b in report.budgets if asked and len(b.layers) == 1}
    kept, total = (sum(getattr(la, name) for la in report.layers) for name in ("units_kept", "units"))
    units = [units_counted(report.unit, kept, total)] if column else []
    head = ["layer", *([column] if column else []), "weights kept", "zeros"]
    everything = ["all", *units, part_of(report.params_kept, report.params), f"{report.sparsity:.2%}"]
    return [
        [*head, *(["asked", "attainable", "achieved"] if asked else [])],
        *([*_layer(la, report.unit), *_budget(own.get(la.name))] for la in report.layers),
        [*everything, *_budget(report if asked else None)],
    ]


def _layer(layer: LayerReport, unit: str) -> list[str]:
    units = [units_counted(unit, layer.units_kept, layer.units)] if units_column(unit) else []
    return [layer.name, *units, part_of(layer.params_kept, layer.params), f"{layer.sparsity:.2%}"]


def _budget(budget: BudgetReport | Report | None) -> list[str]:
    if budget is None:
        return []
    return [f"{fraction:.2%}" for fraction in (budget.requested, budget.attainable, budget.achieved)]


def _has_budget(report: Report) -> bool:
    """Whether zeros were asked for, beside or instead of a Hoyer sparsity."""
    return report.hoyer is None or report.requested > 0.0


def _measured(report: Report) -> str:
    return f"asked, attainable and achieved: how much of the {cost_words(report.cost)} goes"


def cost_words(cost: str) -> str:
    """What a cost counts, as it is called in a sentence."""
    return {"params": "weights", "latency_ms": "milliseconds"}.get(cost, cost)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    return ["  ".join([r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:]))]) for r in rows]
