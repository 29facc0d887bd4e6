"""The envelope's proximal steps find the minimiser of a convex problem under each optimizer they can follow."""

from functools import cache

import cvxpy
import numpy as np
import pytest
import torch
from torch import nn

import setpoint
from setpoint.methods import GroupSparseEnvelope

LEVEL, STRENGTH = 3, 0.3


def problem():
    generator = np.random.default_rng(0)
    inputs, targets = generator.standard_normal((40, 4)), generator.standard_normal((40, 6))
    targets += inputs @ generator.standard_normal((4, 6)) * np.array([3, 2, 1.5, 0.4, 0.3, 0.2])
    return inputs, targets


@cache
def minimiser(unit):
    """Least squares plus the envelope, by cvxpy: `1/2 sum |w_g|^2 / u_g` with `0 <= u <= 1`, `sum u <= k`."""
    inputs, targets = problem()
    weight = cvxpy.Variable((6, 4))
    rows = [weight[i, :] for i in range(6)]
    entries = rows if unit == "row" else [row[j] for row in rows for j in range(4)]
    shares = cvxpy.Variable(len(entries))
    envelope = sum(cvxpy.quad_over_lin(e, shares[g]) for g, e in enumerate(entries)) / 2
    loss = cvxpy.sum_squares(inputs @ weight.T - targets) / (2 * len(inputs))
    bounds = [shares <= 1, shares >= 0, cvxpy.sum(shares) <= level(unit)]
    tolerances = {"tol_gap_abs": 1e-9, "tol_gap_rel": 1e-9, "tol_feas": 1e-9}
    cvxpy.Problem(cvxpy.Minimize(loss + STRENGTH * envelope), bounds).solve(solver=cvxpy.CLARABEL, **tolerances)
    return torch.tensor(weight.value)


def level(unit):
    return LEVEL * (1 if unit == "row" else 4)


def descend(model, optimizer, steps, gamma):
    inputs, targets = (torch.tensor(a) for a in problem())
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)
    for _ in range(steps):
        optimizer.zero_grad()
        ((model(inputs) - targets).square().sum() / (2 * len(inputs))).backward()
        optimizer.step()
        decay.step()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "dampened": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0),
}


# Whole units under Adam are refused: see below.
PAIRS = [
    (n, u) for n in OPTIMIZERS for u in ("row", "weight") if u == "weight" or n not in ("adam", "amsgrad", "adamw")
]


@pytest.mark.parametrize(("name", "unit"), PAIRS)
def test_convex_form_converges_to_the_minimiser(name, unit):
    torch.manual_seed(0)
    model = nn.Linear(4, 6, bias=False, dtype=torch.float64)
    optimizer = OPTIMIZERS[name](model.parameters())
    steps = 2000
    schedule = setpoint.Schedule("linear", begin=0, end=steps, interval=1)
    method = GroupSparseEnvelope(debias=False, strength=STRENGTH, level="target")
    target = setpoint.Target(units=level(unit))
    setpoint.Sparsifier(
        model, optimizer, method=method, target=target, unit=unit, steps=steps, schedule=schedule, floor=0
    )
    descend(model, optimizer, steps - 1, 0.997)
    want = minimiser(unit)
    assert torch.allclose(model.weight.detach(), want, atol=1e-5)
    gone = want.norm(dim=1) < 1e-5 if unit == "row" else want.abs() < 1e-5
    assert bool(gone.any())
    assert bool((model.weight.detach()[gone] == 0).all()), "what the penalty removes is exactly zero"


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_debiased_form_meets_the_budget_and_does_not_shrink_the_survivors(name):
    inputs, targets = (torch.tensor(a) for a in problem())
    torch.manual_seed(0)
    model = nn.Linear(4, 6, bias=False, dtype=torch.float64)
    optimizer = OPTIMIZERS[name](model.parameters())
    steps = 1500
    schedule = setpoint.Schedule("linear", begin=0, end=steps, interval=1)
    setpoint.Sparsifier(
        model, optimizer, method="wgsef", target=setpoint.Target(units=3), unit="row", steps=steps, schedule=schedule
    )
    descend(model, optimizer, steps - 1, 0.996)
    assert int((model.weight.detach().norm(dim=1) > 0).sum()) <= 4
    best = torch.linalg.lstsq(inputs, targets).solution.T
    kept = best.norm(dim=1).argsort(descending=True)[:3]
    assert torch.allclose(model.weight.detach()[kept], best[kept], atol=1e-2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"time": 0.0}, "time=0.0"),
        ({"strength": -1.0}, "strength=-1.0"),
        ({"strength": float("nan")}, "strength=nan"),
        ({"level": "half"}, "'half'"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        GroupSparseEnvelope(**options)


def test_optimizers_that_the_convex_form_cannot_follow():
    model = nn.Linear(4, 6)
    method = GroupSparseEnvelope(debias=False)
    with pytest.raises(ValueError, match=r"RMSprop.*SGD, Adam, AdamW"):
        setpoint.Sparsifier(model, torch.optim.RMSprop(model.parameters()), method=method, target=0.5, steps=10)
    with pytest.raises(ValueError, match=r"AdamW.*'weight'.*debias=True"):
        setpoint.Sparsifier(
            model, torch.optim.AdamW(model.parameters()), method=method, target=0.5, unit="row", steps=10
        )
