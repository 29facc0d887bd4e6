"""Operations of a forward pass: counted for every use of a weight, and told from any widths."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from wiring_oddities import Adapted
from wiring_recurrent import Reader
from wiring_transformers import GroupedDecoder

from setpoint.budget import count_flops, flops_of_widths
from setpoint.recipes.models.gpt import GPT
from setpoint.wiring import derive

TOKENS = torch.randint(30, (2, 6), generator=torch.Generator().manual_seed(0))
VECTORS = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(0))


def gpt(tied: bool) -> GPT:
    return GPT(vocabulary=30, context=8, width=8, depth=1, heads=2, tied=tied)


def total(model, inputs) -> int:
    by_parameter, between = count_flops(model, inputs)
    return sum(by_parameter.values()) + between


def test_a_tied_weight_counts_wherever_it_is_used():
    by_parameter, _ = count_flops(gpt(tied=True), TOKENS)
    assert by_parameter["tokens.weight"] == 2 * TOKENS.numel() * 30 * 8
    assert total(gpt(tied=True), TOKENS) == total(gpt(tied=False), TOKENS)
    assert count_flops(gpt(tied=True), {"tokens": TOKENS}) == count_flops(gpt(tied=True), (TOKENS,))


def test_the_model_stays_as_it_was():
    model = Reader(nn.LSTM).train()
    before = {name: (id(t), t.device.type, type(t)) for name, t in model.state_dict(keep_vars=True).items()}
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(model)(VECTORS)
    assert total(model, VECTORS) >= counter.get_total_flops() > 0  # fused kernels are not counted there
    assert {name: (id(t), t.device.type, type(t)) for name, t in model.state_dict(keep_vars=True).items()} == before
    assert model.training
    assert model(VECTORS).device.type == "cpu"


@pytest.mark.parametrize(
    ("build", "inputs"),
    [(lambda: gpt(True), TOKENS), (lambda: GroupedDecoder("sdpa"), TOKENS), (lambda: Reader(nn.GRU), VECTORS)],
    ids=["tied", "grouped queries", "recurrent"],
)
def test_operations_are_told_from_all_widths(build, inputs):
    model = build()
    wiring = derive(model, inputs)
    groups = [group.name for group in wiring.groups]
    cost = flops_of_widths(model, wiring, groups, inputs)
    for widths in itertools.product(*({1, wiring[name].size // 2, wiring[name].size} for name in groups)):
        small = copy.deepcopy(model)
        wiring.resize(small, {name: torch.arange(width) for name, width in zip(groups, widths)})
        assert cost(widths) == pytest.approx(total(small, inputs), rel=1e-12)


def test_operations_that_cannot_be_told_are_refused():
    model, inputs = Adapted(), VECTORS[0]
    wiring = derive(model, inputs)
    with pytest.raises(ValueError, match=r"cannot be told from the widths of inner, up, weight.*a target in params"):
        flops_of_widths(model, wiring, ["inner", "up", "weight"], inputs)


@pytest.mark.parametrize("layer", [nn.Linear(1, 6), nn.Conv2d(1, 6, 1), nn.Linear(1, 1)])
def test_a_bias_as_large_as_its_weight_is_not_what_is_multiplied_with(layer):
    inputs = torch.zeros(2, 1, 3, 3) if isinstance(layer, nn.Conv2d) else torch.zeros(2, 1)
    for _ in range(20):  # wherever tensors lie in memory
        by_parameter, between = count_flops(copy.deepcopy(layer), inputs)
        assert (set(by_parameter), between) == ({"weight"}, 0)
