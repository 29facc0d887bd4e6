"""The figure that tells how good a model is, for each kind of task: how it is read, and how it is shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from setpoint.reporting.words import percent


@dataclass(frozen=True)
class Measure:
    """A figure of models.

    Attributes:
        name: in words.
        key: what it is made from: `test_<key>` of a run, `validation_<key>` of an epoch.
        step: the unit of a difference.
        scale: from what it is made from to the figure.
        fraction: whether it is a fraction, shown in percent, of which more is better; else a number of which less is.
    """

    name: str
    key: str
    step: str
    scale: float = 1.0
    fraction: bool = True

    def of(self, values: Mapping[str, Any], split: str) -> float | None:
        """The figure of a split, such as test or dense_test, in a run or an epoch; None where there is none."""
        value = values[f"{split}_{self.key}"]
        return None if value is None else self.scale * value

    def words(self, figure: float) -> str:
        """A figure as people read it."""
        return percent(figure) if self.fraction else self.number(figure)

    def number(self, figure: float) -> str:
        """A figure without its unit."""
        return f"{100 * figure:.2f}" if self.fraction else f"{figure:.3f}"

    def difference(self, difference: float) -> str:
        """A difference of two figures with its sign, without its unit."""
        return f"{100 * difference:+.2f}" if self.fraction else f"{difference:+.3f}"


# By what a run's report has for its task.
MEASURES = {
    "classification": Measure("accuracy", "accuracy", "points"),
    "language modelling": Measure("bits per byte", "loss", "bits", scale=1.0 / math.log(2.0), fraction=False),
}
