"""Supports that move in layers made larger: exactly the counts of the dense model's operations at every step."""

import pytest
import torch
from torch import nn
from transform_nets import SMALL, TOKENS, Residual

import setpoint
from setpoint.recipes.models import build_model
from setpoint.transforms import sparse_ift

KINDS = ("wide", "parallel", "factorized", "doped")
METHODS = ("static", "set", "rigl")
STEPS, UPDATES_END = 12, 9


def gpt() -> nn.Module:
    return build_model("gpt", shape=(16,), classes=64, width=0.25)


MODELS = {"residual": (Residual, SMALL), "gpt": (gpt, TOKENS)}


def make(name, kind, method, seed=0):
    torch.manual_seed(seed)
    build, inputs = MODELS[name]
    result = sparse_ift(build(), kind, 0.75, example_inputs=inputs)
    optimizer = torch.optim.AdamW(result.model.parameters(), lr=0.01)
    sparsifier = setpoint.Sparsifier(
        result.model,
        optimizer,
        method=method,
        target=result.target,
        scope=result.scope,
        include=result.include,
        steps=STEPS,
        schedule=setpoint.Schedule("constant", begin=0, end=UPDATES_END, interval=2),
    )
    return result, optimizer, sparsifier, inputs


def step(model, optimizer, inputs):
    optimizer.zero_grad()
    outputs = model(inputs).flatten(0, -2)
    nn.functional.cross_entropy(outputs, torch.arange(len(outputs)) % outputs.shape[1]).backward()
    optimizer.step()


def counts(result):
    return [int(torch.count_nonzero(result.model.get_parameter(layer.name))) for layer in result.layers]


@pytest.mark.filterwarnings("ignore:.*less than one")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_counts_are_those_handed_out_from_the_first_step_to_the_last(name, kind, method):
    result, optimizer, sparsifier, inputs = make(name, kind, method)
    asked = [layer.kept for layer in result.layers]
    first = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    for _ in range(STEPS):
        assert [int(sparsifier.masks[layer.name].sum()) for layer in result.layers] == asked
        assert all(count <= most for count, most in zip(counts(result), asked))
        assert sparsifier.report().exact
        step(result.model, optimizer, inputs)
    assert [int(sparsifier.masks[layer.name].sum()) for layer in result.layers] == asked
    moved = any(not torch.equal(first[name], mask) for name, mask in sparsifier.masks.items())
    assert moved == (method != "static")


@pytest.mark.filterwarnings("ignore:.*less than one")
@pytest.mark.parametrize("cut", [0, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_bit_exact(tmp_path, kind, cut):
    whole, optimizer, _, inputs = make("gpt", kind, "rigl")
    for _ in range(STEPS):
        step(whole.model, optimizer, inputs)
    first, optimizer, _, _ = make("gpt", kind, "rigl")
    for _ in range(cut):
        step(first.model, optimizer, inputs)
    torch.save({"model": first.model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    second, optimizer, sparsifier, _ = make("gpt", kind, "rigl", seed=1)
    second.model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    for _ in range(STEPS - cut):
        step(second.model, optimizer, inputs)
    states = whole.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert sparsifier.report().exact
