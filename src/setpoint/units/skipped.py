"""The parameters that a run leaves dense, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_NAMED = 3


@dataclass(frozen=True)
class Skipped:
    """What a run does not take.

    Attributes:
        name: of the parameter; or of a group or branch whose units are not taken.
        reason: in words.
        params: how many entries the parameter has; 0 for a group or branch, whose parameters stand for themselves.
    """

    name: str
    reason: str
    params: int


def skipped_in_words(reasons: Mapping[str, str], params: Mapping[str, int], model_params: int) -> Iterator[str]:
    """One line for each reason, the one that most of the model's parameters have first.

    Args:
        reasons: by name of the parameter.
        params: by name, how many entries it has.
        model_params: of the whole model.
    """
    names = _by_reason(reasons)
    sizes = {reason: sum(params.get(name, 0) for name in names[reason]) for reason in names}
    for reason in sorted(names, key=lambda reason: -sizes[reason]):
        yield f"left dense: {_amount(names[reason], params, model_params)}{reason}: {_listed(names[reason])}"


def grouped(reasons: Mapping[str, str]) -> Iterator[str]:
    """The names of each reason, the first few written out."""
    yield from (f"{_listed(names)}: {reason}" for reason, names in _by_reason(reasons).items())


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return names


def _amount(names: list[str], params: Mapping[str, int], model_params: int) -> str:
    counted = [params[name] for name in names if params.get(name)]
    if not counted:
        return ""
    noun = "parameter" if len(counted) == 1 else "parameters"
    return f"{len(counted)} {noun}, {100 * sum(counted) / max(model_params, 1):.2g} % of the model: "


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED + 1 else ""
    return ", ".join(names[:_NAMED] if more else names) + more
