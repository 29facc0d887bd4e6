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
# Of the units in the envelope's quadratic. One is 0: that unit is free, and the others share what is left of the level.
WEIGHTS = {
    None: None,
    "row": torch.tensor([1.5, 0.7, 2.0, 0.0, 0.4, 1.0], dtype=torch.float64).reshape(6, 1, 1),
    "weight": torch.cat([torch.zeros(1), torch.linspace(2.0, 0.3, 23)]).double().reshape(6, 4),
}


def problem():
    generator = np.random.default_rng(0)
    inputs, targets = generator.standard_normal((40, 4)), generator.standard_normal((40, 6))
    targets += inputs @ generator.standard_normal((4, 6)) * np.array([3, 2, 1.5, 0.4, 0.3, 0.2])
    return inputs, targets


def level(unit):
    return LEVEL * (1 if unit == "row" else 4)


@cache
def minimiser(unit, weighted=None):
    """Least squares plus the envelope, by cvxpy: `1/2 sum w_g |x_g|^2 / u_g` with `0 <= u <= 1`, `sum u <= k`."""
    inputs, targets = problem()
    weight = cvxpy.Variable((6, 4))
    rows = [weight[i, :] for i in range(6)]
    entries = rows if unit == "row" else [row[j] for row in rows for j in range(4)]
    weights = np.ones(len(entries)) if weighted is None else WEIGHTS[weighted].numpy().flatten()
    penalised = np.flatnonzero(weights)
    shares = cvxpy.Variable(len(penalised))
    room = level(unit) - (len(entries) - len(penalised))
    envelope = sum(weights[g] * cvxpy.quad_over_lin(entries[g], u) for g, u in zip(penalised, shares)) / 2
    loss = cvxpy.sum_squares(inputs @ weight.T - targets) / (2 * len(inputs))
    bounds = [shares <= 1, shares >= 0, cvxpy.sum(shares) <= room]
    tolerances = {"tol_gap_abs": 1e-9, "tol_gap_rel": 1e-9, "tol_feas": 1e-9}
    cvxpy.Problem(cvxpy.Minimize(loss + STRENGTH * envelope), bounds).solve(solver=cvxpy.CLARABEL, **tolerances)
    return torch.tensor(weight.value)


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


def penalised(unit, optimizer, *, weighted=None, kind=GroupSparseEnvelope, steps=1000, interval=1, gamma=0.995):
    """The weights that a run with the convex form ends in, right after an update."""
    torch.manual_seed(0)
    model = nn.Linear(4, 6, bias=False, dtype=torch.float64)
    optimizer = optimizer(model.parameters())
    weights = None if weighted is None else {"weight": WEIGHTS[weighted]}
    setpoint.Sparsifier(
        model,
        optimizer,
        method=kind(debias=False, strength=STRENGTH, level="target", weights=weights),
        target=setpoint.Target(units=level(unit)),
        unit=unit,
        steps=steps + 1,
        schedule=setpoint.Schedule("linear", begin=0, end=steps + 1, interval=interval),
        floor=0,
    )
    descend(model, optimizer, steps, gamma)
    return model.weight.detach()


CASES = [(name, unit, None) for name in OPTIMIZERS for unit in ("row", "weight")]
CASES += [(name, unit, unit) for name in ("momentum", "adam", "amsgrad") for unit in ("row", "weight")]


@pytest.mark.parametrize(("name", "unit", "weighted"), CASES)
def test_convex_form_converges_to_the_minimiser(name, unit, weighted):
    found, want = penalised(unit, OPTIMIZERS[name], weighted=weighted), minimiser(unit, weighted)
    # The solver itself is good for some 1e-5.
    assert torch.allclose(found, want, atol=5e-5)
    gone = want.norm(dim=1) < 1e-4 if unit == "row" else want.abs() < 1e-4
    assert bool(gone.any())
    assert bool((found[gone] == 0).all()), "what the penalty removes is exactly zero"


@pytest.mark.parametrize("name", ["adam", "amsgrad"])
def test_rows_need_a_step_in_the_metric_of_their_proximal_map(name):
    class Elementwise(GroupSparseEnvelope):
        steps = False

    assert not torch.allclose(penalised("row", OPTIMIZERS[name], kind=Elementwise), minimiser("row"), atol=0.1)


@pytest.mark.parametrize("unit", ["row", "weight"])
def test_between_rarer_updates_the_minimiser_is_missed_in_proportion_to_the_step_size(unit):
    def error(lr, interval):
        found = penalised(unit, lambda p: torch.optim.SGD(p, lr=lr), interval=interval, gamma=1.0)
        return float((found - minimiser(unit)).norm())

    assert error(0.05, 1) < 1e-4
    assert 1.7 < error(0.05, 5) / error(0.025, 5) < 2.3


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
