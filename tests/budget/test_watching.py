"""Counting operations of models that share parameters, make tensors, or look at values."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from setpoint.budget import count_flops
from setpoint.meta import on_meta

INPUTS = torch.randn(3, 8)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.twice = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.twice(self.twice(self.other(self.one(x))))


class Places(nn.Module):
    """Makes a tensor without saying on which device."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x + self.table.weight[torch.arange(8)].sum(0))


class Looks(nn.Module):
    """Branches on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert bool((x == x).all())
        q = self.linear(x)[None, None]
        return F.scaled_dot_product_attention(q, q, q)


def test_a_shared_weight_counts_for_all_its_uses_under_its_first_name():
    assert count_flops(Shared(), INPUTS) == ({"one.weight": 2 * 2 * 3 * 64, "twice.weight": 2 * 2 * 3 * 64}, 0)


def test_tensors_made_in_the_forward_pass_may_be_anywhere():
    flops, rest = count_flops(Places(), INPUTS)
    assert (flops["linear.weight"], rest) == (2 * 3 * 8 * 4, 0)


def test_a_model_that_looks_at_values_is_run_and_its_attention_counted():
    assert count_flops(Looks(), INPUTS) == ({"linear.weight": 2 * 3 * 64}, 2 * 2 * 3 * 3 * 8)
    with pytest.raises(RuntimeError):
        count_flops(Looks().to("meta"), INPUTS)


def test_a_meta_copy_shares_what_the_model_shares_and_holds_no_values():
    model = nn.Sequential(Shared(), nn.BatchNorm1d(8)).eval()
    model[0].twice.weight.requires_grad_(False)
    twin = on_meta(model)
    assert all(t.is_meta for t in (*twin.parameters(), *twin.buffers()))
    assert twin[0].one.weight is twin[0].other.weight
    assert twin[0].one.weight is not twin[0].twice.weight
    assert not any(m.training for m in twin.modules())
    flags = [(n, p.shape, p.requires_grad) for n, p in model.named_parameters()]
    assert [(n, p.shape, p.requires_grad) for n, p in twin.named_parameters()] == flags
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
