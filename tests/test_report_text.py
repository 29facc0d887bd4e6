"""What a report prints is true and can be read, whatever the units."""

import pytest
import torch
from torch import nn

import setpoint
from setpoint import Target


def report(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = setpoint.Sparsifier(model, optimizer, method="magnitude", **options, steps=20)
    sparsifier.freeze()
    return model, sparsifier.report()


def row(text, name):
    """The cells of a row, by the words of the head."""
    lines = [line.replace(" / ", "/") for line in str(text).splitlines()]
    head = next(line for line in lines if line.startswith("layer"))
    cells = next(line for line in lines if line.startswith(f"{name} ")).split()
    words = [word.strip() for word in head.split("  ") if word.strip()]
    return dict(zip(words, cells))


def test_a_row_of_a_layer_with_its_own_budget():
    _, found = report(target=0.9, unit="row", scope="uniform")
    assert row(found, "0.weight") == {
        "layer": "0.weight",
        "units kept": "2/16",
        "weights kept": "40/320",
        "zeros": "87.50%",
        "asked": "90.00%",
        "attainable": "87.50%",
        "achieved": "87.50%",
    }
    assert row(found, "all")["asked"] == "90.00%"
    assert row(found, "all")["units kept"] == "4/32"


def test_single_weights_are_counted_once():
    _, found = report(target=0.9)
    assert list(row(found, "all")) == ["layer", "weights kept", "zeros", "asked", "attainable", "achieved"]
    assert row(found, "all")["weights kept"] == "56/560"


@pytest.mark.parametrize(
    ("target", "groups", "weights"), [(None, 140, 280), (0.3, 84, 392), (Target(params=0.7), 84, 392)]
)
def test_groups_of_a_pattern_are_said_to_be_pruned_to_it(target, groups, weights):
    _, found = report(target=target, unit="2:4")
    cells = row(found, "all")
    assert cells["groups at 2:4"] == f"{groups}/140"
    assert cells["weights kept"] == f"{weights}/560"
    asked = f"{1 - weights / 560:.2%}"
    assert (cells["asked"], cells["attainable"], cells["achieved"]) == (asked,) * 3
    assert found.requested == pytest.approx(1 - weights / 560)
    assert "a group of 4 weights that is pruned to 2:4 keeps its 2 largest" in str(found)
    assert "units kept" not in str(found)


def test_weights_of_two_groups_are_counted_once_in_all():
    model, found = report(target=Target(flops=0.5), unit="neuron", example_inputs=torch.zeros(1, 20))
    layers = list(model.parameters())
    kept, total = sum(int((p != 0).sum()) for p in layers), sum(p.numel() for p in layers)
    cells = row(found, "all")
    assert cells["weights kept"] == f"{kept}/{total}"
    assert sum(la.params for la in found.layers) > total
    assert "in the rows of both" in str(found)
    assert "how much of the flops goes" in str(found)
    assert cells["asked"] == "50.00%"
    assert float(cells["achieved"].rstrip("%")) >= 50


def test_nothing_is_asked_of_a_cost_where_a_hoyer_sparsity_rules():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = setpoint.Sparsifier(model, optimizer, target=Target(hoyer=0.7), steps=20)
    sparsifier.freeze()
    shown = str(sparsifier.report())
    assert "asked" not in shown
    assert "budget:" not in shown
    assert "average Hoyer sparsity 0.7" in shown


def test_budgets_of_many_small_costs_are_exact():
    """A step of 2 operations is seen in a budget of billions."""
    from setpoint.report import BudgetReport

    def budget(kept):
        return BudgetReport(("a",), 8e9, 4e9, kept, 0.5, 0.5, 2.0)

    assert budget(4e9).exact
    assert not budget(4e9 + 2).exact
    assert not budget(4e9 - 2).exact
