"""One budget over parameters that several optimizers train."""

import copy

import pytest
import torch
from torch import nn

import setpoint

from nets import build

STEPS = 20
METHODS = ("magnitude", "gsp", "wgsef", "l0", "hoyer", "static", "set", "rigl")
KINDS = {
    "muon and adamw": (lambda p: torch.optim.Muon(p, lr=1e-2), lambda p: torch.optim.AdamW(p, lr=1e-2)),
    "sgd and adam": (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), lambda p: torch.optim.Adam(p, lr=1e-2)),
}


def built(kind="muon and adamw", seed=0, net="mlp"):
    model, _, batch = build(net, seed=seed)
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and name != "4.weight"]
    rest = [p for p in model.parameters() if not any(p is q for q in inner)]
    return model, [make(p) for make, p in zip(KINDS[kind], (inner, rest))], batch


def train(model, optimizers, batch, steps, start=0, scaler=None):
    for step in range(start, start + steps):
        inputs, targets = batch(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_budget_is_met_exactly_and_a_resumed_run_ends_in_the_same_bits(method, kind):
    model, optimizers, batch = built(kind)
    sparsifier = setpoint.Sparsifier(model, optimizers, method=method, target=0.8, steps=STEPS)
    train(model, optimizers, batch, 12)
    states = copy.deepcopy([model.state_dict(), *(o.state_dict() for o in optimizers)])
    train(model, optimizers, batch, STEPS - 12, start=12)
    assert sparsifier.step == STEPS
    assert sparsifier.report().exact
    total = sum(model.get_parameter(name).numel() for name in sparsifier.masks)
    assert {"0.weight", "2.weight", "4.weight"} == sparsifier.masks.keys()
    assert sum(int(mask.sum()) for mask in sparsifier.masks.values()) == round(0.2 * total)

    again, optimizers, _ = built(kind, seed=1)
    resumed = setpoint.Sparsifier(again, optimizers, method=method, target=0.8, steps=STEPS)
    for thing, state in zip([again, *optimizers], states):
        thing.load_state_dict(state)
    assert resumed.step == 12
    train(again, optimizers, batch, STEPS - 12, start=12)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_what_one_optimizer_moved_is_held_before_the_other_steps():
    model, optimizers, batch = built()
    sparsifier = setpoint.Sparsifier(model, optimizers, method="magnitude", target=0.8, steps=STEPS)
    train(model, optimizers, batch, STEPS)
    optimizers[0].zero_grad()
    nn.functional.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
    optimizers[0].step()
    assert sparsifier.exact
    assert sparsifier.step == STEPS
    optimizers[1].step()
    assert sparsifier.exact
    assert sparsifier.step == STEPS + 1


def test_an_optimizer_is_skipped_for_its_own_gradients():
    model, optimizers, batch = built()
    sparsifier = setpoint.Sparsifier(model, optimizers, target=0.8, steps=STEPS)
    train(model, optimizers, batch, 3)
    before = copy.deepcopy(model.state_dict())
    nn.functional.cross_entropy(model(batch(3)[0]), batch(3)[1]).backward()
    model[0].weight.grad[0, 0] = float("nan")
    with pytest.warns(UserWarning, match="it is skipped"):
        optimizers[0].step()
    optimizers[1].step()
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[4].weight, before["4.weight"])
    assert sparsifier.step == 3
    train(model, optimizers, batch, STEPS - 3, start=4)
    assert sparsifier.step == STEPS
    assert sparsifier.report().exact


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda model, opt: [], "holds no optimizer"),
        (lambda model, opt: [opt, opt], "given twice"),
        (lambda model, opt: [opt, torch.optim.SGD(model.parameters(), lr=0.1)], "held by two of the optimizers"),
        (lambda model, opt: [opt, torch.optim.LBFGS(nn.Linear(2, 2).parameters())], "LBFGS"),
    ],
)
def test_optimizers_that_make_no_set_are_refused(make, words):
    model, opt, _ = build("mlp")
    with pytest.raises(ValueError, match=words):
        setpoint.Sparsifier(model, make(model, opt), target=0.8, steps=STEPS)
    setpoint.Sparsifier(model, opt, target=0.8, steps=STEPS)


def test_what_is_no_optimizer_is_refused_in_a_list_too():
    model, opt, _ = build("mlp")
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer"):
        setpoint.Sparsifier(model, [opt, "adam"], target=0.8, steps=STEPS)


def test_a_parameter_that_none_of_them_holds_is_named():
    model, optimizers, _ = built()
    with pytest.raises(ValueError, match=r"4\.weight"):
        setpoint.Sparsifier(model, optimizers[:1], include="4.weight", target=0.8, steps=STEPS)
