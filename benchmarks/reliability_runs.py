"""Runs drawn at random, from the constructor to the freeze: held exactly, refused in a sentence, or crashed.

What is kept is counted here once more, by NumPy on the plain matrices of the layers, without a word from the library.
"""

from __future__ import annotations

import itertools
import random
import warnings
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import nn

import setpoint

STEPS = 10
METHODS = ("magnitude", "gsp", "wgsef", "l0", "hoyer", "static", "set", "rigl")
UNITS = ("weight", "row", "column", "2:4", (2, 2))
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}


def run(long: bool) -> dict[str, Any]:
    """Counts of what became of the runs; `wrong` and `crashed` must be 0."""
    draw, counts, reasons = random.Random(0), Counter[str](), Counter[str]()
    tried = 4000 if long else 300
    for number in range(tried):
        outcome, reason = _one(draw, number)
        counts[outcome] += 1
        if reason:
            reasons[reason] += 1
    zero = dict.fromkeys(("held", "refused", "wrong", "crashed"), 0)
    return {"tried": tried, **zero, **counts, "reasons": dict(reasons.most_common(12))}


def _one(draw: random.Random, seed: int) -> tuple[str, str]:
    torch.manual_seed(seed)
    sizes = [draw.randint(1, 12) for _ in range(draw.randint(2, 4))]
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b, bias=draw.random() < 0.8), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    optimizer = OPTIMIZERS[draw.choice(list(OPTIMIZERS))](model.parameters())
    unit, method = draw.choice(UNITS), draw.choice(METHODS)
    target = None if unit == "2:4" and draw.random() < 0.5 else _target(draw)
    options = {
        "method": method,
        "unit": unit,
        "target": target,
        "scope": draw.choice(("global", "uniform", "erk")),
        "floor": draw.choice((0, 1, 2)),
        "steps": STEPS,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            sparsifier = setpoint.Sparsifier(model, optimizer, **options)
        except ValueError as error:
            return "refused", str(error).split(":")[0][:60] if len(str(error)) < 600 else "TOO LONG"
        except Exception as error:
            return "crashed", f"{type(error).__name__} {error} {options}"
        try:
            for _ in range(STEPS):
                optimizer.zero_grad()
                model(torch.randn(8, sizes[0])).square().mean().backward()
                optimizer.step()
        except Exception as error:
            return "crashed", f"{type(error).__name__} {error} {options}"
        return _judged(sparsifier, model, unit, target, options)


def _target(draw: random.Random) -> Any:
    kind = draw.choice(("fraction", "params", "units", "sparsity"))
    amount = round(draw.uniform(0.02, 0.98), 3)
    if kind == "fraction":
        return amount
    if kind == "sparsity":
        return setpoint.Target(sparsity=amount, cost=draw.choice(("params", "units")))
    return setpoint.Target(**{kind: amount})


def _judged(
    sparsifier: setpoint.Sparsifier, model: nn.Module, unit: Any, target: Any, options: dict[str, Any]
) -> tuple[str, str]:
    report = sparsifier.report()
    masks = {name: mask.numpy() for name, mask in sparsifier.masks.items()}
    weights = {name: model.get_parameter(name).detach().numpy() for name in masks}
    broken = [name for name, mask in masks.items() if bool((weights[name][~mask] != 0).any())]
    if not report.exact or report.differences or broken:
        return "wrong", f"not exact {options}"
    kept = {name: _kept_units(mask, unit) for name, mask in masks.items()}
    if unit != "2:4" and any(la.units_kept != kept[la.name] for la in report.layers):
        return "wrong", f"units miscounted {options}"
    if unit == "2:4" and target is None and any(_longest_group(mask) > 2 for mask in masks.values()):
        return "wrong", f"a group keeps more than two {options}"
    return _within(report, masks, kept, unit, target, options)


def _within(report: Any, masks: Any, kept: Any, unit: Any, target: Any, options: dict[str, Any]) -> tuple[str, str]:
    """Whether a budget was exceeded, or a sparsity of single weights missed the nearest count."""
    total, entries = sum(m.size for m in masks.values()), sum(int(m.sum()) for m in masks.values())
    if isinstance(target, setpoint.Target) and target.params is not None and entries > target.params * total + 1e-6:
        return "wrong", f"a budget is exceeded {options}"
    if isinstance(target, setpoint.Target) and target.units is not None and unit != "2:4":
        units = sum(la.units for la in report.layers)
        if sum(kept.values()) > target.units * units + 1e-6:
            return "wrong", f"a budget is exceeded {options}"
    if unit == "weight" and isinstance(target, float) and options["scope"] == "global" and options["floor"] < 2:
        asked = total * (1.0 - target)
        if abs(entries - asked) > 0.5 + 1e-6 and entries > len(masks):
            return "wrong", f"not the nearest count {options}"
    return "held", ""


def _kept_units(mask: np.ndarray, unit: Any) -> int:
    if unit == "weight":
        return int(mask.sum())
    if unit == "row":
        return int(mask.any(1).sum())
    if unit == "column":
        return int(mask.any(0).sum())
    if unit == "2:4":
        return -1
    height, width = unit
    rows, columns = mask.shape
    tiles = [mask[i : i + height, j : j + width] for i in range(0, rows, height) for j in range(0, columns, width)]
    return sum(bool(tile.any()) for tile in tiles)


def _longest_group(mask: np.ndarray) -> int:
    return max(int(mask[:, j : j + 4].sum(1).max()) for j in range(0, mask.shape[1], 4))
