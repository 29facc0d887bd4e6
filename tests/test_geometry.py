"""Adam with one second moment a unit, against a plain implementation of it."""

import pytest
import torch
from torch.optim import SGD, Adam, AdamW

from setpoint.geometry import followed_kind, proximal_geometry, share_second_moment
from setpoint.units import partition
from setpoint.units.layout import Layout

SHAPE = (5, 7)
# Which unit each entry is in. The tiles at the edges are smaller.
ROWS, COLUMNS = torch.arange(5)[:, None].expand(SHAPE), torch.arange(7)[None, :].expand(SHAPE)
UNITS = {"row": ROWS, "column": COLUMNS, (2, 3): ROWS // 2 * 3 + COLUMNS // 3, "weight": ROWS * 7 + COLUMNS}


def gradients(steps):
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(SHAPE, generator=generator, dtype=torch.float64) * 3
    # Falling and rising, so that AMSGrad's maximum is at times an old one and at times a new one.
    return [
        torch.randn(SHAPE, generator=generator, dtype=torch.float64) * scales * (0.1 + abs(30 - t) / 30)
        for t in range(steps)
    ]


def averaged(values, labels):
    out = torch.empty_like(values)
    for label in labels.unique():
        out[labels == label] = values[labels == label].mean()
    return out


def block_adam(start, steps, labels, *, lr, decay=0.0, coupled=False, amsgrad=False, maximize=False, begin=0):
    """Up to step `begin` the moment is each entry's own."""
    x, m, v, peak = start.clone(), 0.0, torch.zeros(SHAPE, dtype=torch.float64), 0.0
    for t, g in enumerate(gradients(steps), start=1):
        g = -g if maximize else g
        if coupled:
            g = g + decay * x
        else:
            x = x * (1 - lr * decay)
        m = 0.9 * m + 0.1 * g
        v = 0.99 * v + 0.01 * g**2
        if t >= begin:
            v = averaged(v, labels)
        peak = torch.maximum(v, torch.as_tensor(peak)) if amsgrad else v
        x = x - lr * m / (1 - 0.9**t) / ((peak / (1 - 0.99**t)).sqrt() + 1e-3)
    return x


def shared(start, steps, unit, optimizer, begin=0):
    """The same by torch's optimizer, corrected after every step."""
    parameter = torch.nn.Parameter(start.clone())
    optimizer = optimizer([parameter])
    units = partition(unit, Layout.of(None, parameter))
    for t, g in enumerate(gradients(steps), start=1):
        parameter.grad = g.to(parameter.dtype)
        optimizer.step()
        if t >= begin:
            share_second_moment(optimizer, parameter, units)
    return parameter.detach(), optimizer


START = torch.linspace(-1, 1, 35, dtype=torch.float64).reshape(SHAPE)
COMMON = {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-3}
WAYS = [{"foreach": False}, {"foreach": True}, {"fused": True}]
CASES = [
    (Adam, {}, {}),
    (Adam, {"amsgrad": True}, {"amsgrad": True}),
    (Adam, {"maximize": True}, {"maximize": True}),
    (Adam, {"weight_decay": 0.1}, {"decay": 0.1, "coupled": True}),
    (Adam, {"weight_decay": 0.1, "decoupled_weight_decay": True}, {"decay": 0.1}),
    (
        AdamW,
        {"weight_decay": 0.1, "amsgrad": True, "maximize": True},
        {"decay": 0.1, "amsgrad": True, "maximize": True},
    ),
]


@pytest.mark.parametrize("way", WAYS, ids=["single", "foreach", "fused"])
@pytest.mark.parametrize(("kind", "options", "same"), CASES)
@pytest.mark.parametrize("unit", UNITS, ids=str)
def test_steps_are_those_of_adam_with_one_moment_a_unit(unit, kind, options, same, way):
    found, _ = shared(START, 60, unit, lambda p: kind(p, **COMMON, **options, **way))
    assert torch.allclose(found, block_adam(START, 60, UNITS[unit], lr=0.05, **same), atol=1e-12)


def test_it_may_begin_later():
    found, _ = shared(START, 60, "row", lambda p: Adam(p, **COMMON), begin=20)
    assert torch.allclose(found, block_adam(START, 60, ROWS, lr=0.05, begin=20), atol=1e-12)
    assert not torch.allclose(found, block_adam(START, 60, ROWS, lr=0.05), atol=1e-3)


def test_a_learning_rate_that_is_a_tensor_and_other_dtypes():
    want = block_adam(START, 60, ROWS, lr=0.05)
    found, _ = shared(START, 60, "row", lambda p: Adam(p, **{**COMMON, "lr": torch.tensor(0.05, dtype=torch.float64)}))
    assert torch.allclose(found, want, atol=1e-12)
    found, _ = shared(START.float(), 60, "row", lambda p: Adam(p, **COMMON))
    assert torch.allclose(found.double(), want, atol=1e-5)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_single_weights_keep_their_own(amsgrad):
    found, optimizer = shared(START, 10, "weight", lambda p: Adam(p, **COMMON, amsgrad=amsgrad))
    plain, other = shared(START, 10, "row", lambda p: Adam(p, **COMMON, amsgrad=amsgrad), begin=11)
    assert torch.equal(found, plain)
    for ours, theirs in zip(optimizer.state.values(), other.state.values()):
        assert torch.equal(ours["exp_avg_sq"], theirs["exp_avg_sq"])


def test_a_parameter_without_a_gradient_is_not_moved():
    parameter = torch.nn.Parameter(START.clone())
    optimizer = Adam([parameter], **COMMON)
    units = partition("row", Layout.of(None, parameter))
    share_second_moment(optimizer, parameter, units)
    assert not optimizer.state
    assert proximal_geometry(optimizer, parameter, units) == (0.0, None)
    parameter.grad = gradients(1)[0]
    optimizer.step()
    parameter.grad = None
    before = parameter.detach().clone()
    optimizer.step()
    share_second_moment(optimizer, parameter, units)
    assert torch.equal(parameter, before)


def test_the_metric_is_the_denominator_of_the_step():
    _, optimizer = shared(START, 60, "row", lambda p: Adam(p, **COMMON, amsgrad=True))
    parameter, state = next(iter(optimizer.state.items()))
    step, metric = proximal_geometry(optimizer, parameter, partition("row", Layout.of(None, parameter)))
    assert step == 0.05
    assert metric.shape == (1, 5, 1, 1)
    want = state["max_exp_avg_sq"].sqrt() / (1 - 0.99**60) ** 0.5 + 1e-3
    assert torch.allclose(metric.reshape(5, 1).expand(SHAPE), want)


def test_steps_of_sgd():
    parameter = torch.nn.Parameter(START.clone())
    units = partition("row", Layout.of(None, parameter))
    for options, step in [({}, 0.1), ({"momentum": 0.9}, 1.0), ({"momentum": 0.9, "dampening": 0.5}, 0.5)]:
        found = proximal_geometry(SGD([parameter], lr=0.1, **options), parameter, units)
        assert found == (pytest.approx(step), None)


class OwnStep(AdamW):
    def step(self, closure=None):
        return super().step(closure)


class OwnOptions(AdamW):
    def __init__(self, params):
        super().__init__(params, lr=0.02, weight_decay=0.1)


@pytest.mark.parametrize("used", [False, True])
def test_a_subclass_is_followed_unless_its_step_is_its_own(used):
    parameter = torch.nn.Parameter(START.clone())
    if used:
        AdamW([parameter])  # torch puts its hooks around a step as soon as its class is used
    assert followed_kind(OwnOptions([parameter])) is not None
    assert followed_kind(OwnStep([parameter])) is None
    assert followed_kind(torch.optim.NAdam([parameter])) is None
    units = partition("row", Layout.of(None, parameter))
    with pytest.raises(ValueError, match="optimizer OwnStep takes steps of unknown geometry; possible: SGD, Adam"):
        proximal_geometry(OwnStep([parameter]), parameter, units)
