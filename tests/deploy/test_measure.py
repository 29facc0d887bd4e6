"""Costs of models: counted where they can be, and side by side where they are timed."""

import pytest
import torch
from torch import nn

from setpoint.deploy.measure import measure
from setpoint.reporting.costs import costs_table


def test_parameters_operations_and_bytes_are_counted():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5)).train()
    model[3].eval()
    found = measure({"a": model}, torch.zeros(1, 4, 4), batches=(1, 3), repeats=2)["a"]
    assert found.parameters == 4 * 9 + 4 + 8 + 64 * 5 + 5
    assert found.flops == 2 * (4 * 9 * 16 + 64 * 5)
    assert found.bytes == 4 * (found.parameters + 8) + 8
    assert set(found.latency_ms) == {1, 3}
    assert all(t > 0 for t in found.latency_ms.values())
    assert [m.training for m in model] == [True, True, True, False], "modes are put back"
    assert float(model[1].running_mean.abs().sum()) == 0.0, "nothing was trained"


def test_arguments_by_name():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x, *, twice):
            return self.layer(x) * (2 if twice else 1)

    found = measure({"a": Sum()}, {"x": torch.zeros(3), "twice": True}, batches=(2,), repeats=1)["a"]
    assert found.flops == 2 * 3 * 4


def test_a_larger_model_costs_more():
    models = {f"{n}": nn.Sequential(nn.Linear(64, n), nn.ReLU(), nn.Linear(n, 4)) for n in (8, 8192)}
    found = measure(models, torch.zeros(64), batches=(32,), repeats=20)
    assert found["8192"].flops > 100 * found["8"].flops
    assert found["8192"].latency_ms[32] > found["8"].latency_ms[32]
    table = costs_table(found)
    assert table.row_count == 4
    assert "x)" in next(iter(table.columns[2].cells))


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="there must be a model"):
        measure({}, torch.zeros(3))
