"""How often a program waits for a GPU because of us: never in a step without an update, and seldom in one with."""

import pytest
import torch
from torch import nn

from pretend import DEVICE, pretended_device
from setpoint import Schedule, Sparsifier
from setpoint.functional import device
from setpoint.methods import method_names

# In a step with an update, of whatever method. The projections wait once or twice of these.
MOST = {"rigl": 14, "set": 12}
STEPS = 40


@pytest.fixture(autouse=True)
def pretended(monkeypatch):
    monkeypatch.setattr(device, "TYPES", {DEVICE.type})


def waits_of_steps(method, unit, depth, **more):
    """How often each optimizer step waits, in two lists: without an update and with one."""
    torch.manual_seed(0)
    with pretended_device() as counts:
        hidden = [layer for _ in range(depth) for layer in (nn.Linear(16, 16), nn.ReLU())]
        model = nn.Sequential(*hidden, nn.Linear(16, 4)).to(DEVICE)
        inputs = torch.randn(8, 16, device=DEVICE)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        shape = {"shape": "constant"} if method in ("static", "set", "rigl") else {}
        schedule = Schedule(begin=0, end=0.75, interval=5, **shape)
        sparsifier = Sparsifier(
            model, optimizer, method=method, target=0.5, unit=unit, steps=STEPS, schedule=schedule, **more
        )
        plain, updates = [], []
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(inputs).square().sum().backward()
            before = len(sparsifier.history), sparsifier.phase
            counts.waits = []
            optimizer.step()
            after = len(sparsifier.history), sparsifier.phase
            (plain if before == after else updates).append(len(counts.waits))
        report = sparsifier.report()
    assert report.phase == "frozen"
    assert report.exact
    return plain, updates


@pytest.mark.parametrize("unit", ["weight", "row"])
@pytest.mark.parametrize("method", method_names())
def test_only_updates_wait(method, unit):
    plain, updates = waits_of_steps(method, unit, 2, nonfinite="unchecked")
    assert set(plain) == {0}
    assert updates
    assert max(updates) <= MOST.get(method, 6)


@pytest.mark.parametrize("unit", ["weight", "row"])
@pytest.mark.parametrize("method", method_names())
def test_deeper_models_wait_no_more_often(method, unit):
    _, few = waits_of_steps(method, unit, 2, nonfinite="unchecked")
    _, many = waits_of_steps(method, unit, 12, nonfinite="unchecked")
    assert max(many) <= max(few) + 1


def test_to_look_at_the_gradients_is_to_wait_once_a_step():
    plain, _ = waits_of_steps("magnitude", "weight", 2)
    assert set(plain) == {1}
