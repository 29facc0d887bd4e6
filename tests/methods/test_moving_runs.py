"""Moving supports in the loops of training: resumed, scaled, clipped, compiled, and without copies that stay."""

import copy
import warnings

import pytest
import torch
import torch._dynamo.testing
from torch import nn

import setpoint
from setpoint.methods import RigL

from nets import build, train

STEPS, INTERVAL = 30, 4
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-4),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
}


def make(method, optimizer="sgd", net="mlp", steps=STEPS, interval=INTERVAL, seed=0, before=None, **more):
    """A fresh run; `before` sees the model before the support is drawn."""
    model, _, batch = build(net, seed=seed)
    opt = OPTIMIZERS[optimizer](model.parameters())
    if before is not None:
        before(model)
    schedule = setpoint.Schedule("constant", begin=0, end=24, interval=interval)
    sparsifier = setpoint.Sparsifier(model, opt, method=method, target=0.7, steps=steps, schedule=schedule, **more)
    return model, opt, batch, sparsifier


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


# Before the first step, just before an update, just after one, between two, and frozen.
@pytest.mark.parametrize("cut", [0, 4, 5, 7, 24, 26])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_resume_is_bit_exact(tmp_path, method, optimizer, cut):
    straight, opt, batch, whole = make(method, optimizer)
    train(straight, opt, batch, STEPS)

    first, opt, batch, _ = make(method, optimizer)
    train(first, opt, batch, cut)
    torch.save({"model": first.state_dict(), "optimizer": opt.state_dict()}, tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    # Other first weights, and another state of torch's generator.
    second, opt, batch, sparsifier = make(method, optimizer, seed=1)
    second.load_state_dict(saved["model"])
    opt.load_state_dict(saved["optimizer"])
    assert same(first, second)
    assert sparsifier.report().exact
    train(second, opt, batch, STEPS - cut, start=cut)
    assert same(straight, second)
    assert all(torch.equal(whole.masks[n], m) for n, m in sparsifier.masks.items())
    assert whole.history == sparsifier.history


@pytest.mark.parametrize("order", ["model first", "optimizer first", "weights before the sparsifier"])
def test_a_checkpoint_may_be_loaded_in_any_order(order):
    """The support that a new run draws must not fall upon the weights of a checkpoint."""
    first, opt, batch, _ = make("rigl")
    train(first, opt, batch, 9)
    model_state, optimizer_state = copy.deepcopy((first.state_dict(), opt.state_dict()))
    early = order == "weights before the sparsifier"
    second, other, _, _ = make("rigl", seed=1, before=(lambda m: m.load_state_dict(model_state)) if early else None)
    if order == "model first":
        second.load_state_dict(model_state)
    other.load_state_dict(optimizer_state)
    if order == "optimizer first":
        second.load_state_dict(model_state)
    assert same(first, second)
    train(first, opt, batch, 9, start=9)
    train(second, other, batch, 9, start=9)
    assert same(first, second)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", ["set", "rigl"])
def test_an_overflow_at_an_update_moves_nothing_and_the_update_is_made_up_for(method, optimizer, fused):
    model, _, batch = build("mlp")
    factory = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
    opt = factory(model.parameters(), lr=1e-2, fused=fused)
    schedule = setpoint.Schedule("constant", begin=0, end=24, interval=INTERVAL)
    sparsifier = setpoint.Sparsifier(model, opt, method=method, target=0.7, steps=STEPS, schedule=schedule)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    overflows = (4, 5, 12)
    for attempt in range(20):
        inputs, targets = batch(attempt)
        opt.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(inputs), targets)).backward()
        if attempt in overflows:
            model[0].weight.grad[0, 0] = torch.inf
        before, masks, step = copy.deepcopy(model.state_dict()), sparsifier.masks, sparsifier.step
        scaler.step(opt)
        scaler.update()
        moved = any(not torch.equal(masks[n], m) for n, m in sparsifier.masks.items())
        assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
        assert sparsifier.report().exact
        if attempt in overflows:
            assert not moved
            assert sparsifier.step == step
            assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
        else:
            assert moved == (step % INTERVAL == 0 and step > 0)
    assert [row["step"] for row in sparsifier.history] == [0, 4, 8, 12, 16]


@pytest.mark.parametrize("method", ["set", "rigl"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masking_the_gradients_hides_nothing_from_an_update(method, optimizer):
    plain, opt, batch, first = make(method, optimizer)
    train(plain, opt, batch, STEPS)
    masked, opt, batch, second = make(method, optimizer)
    for step in range(STEPS):
        inputs, targets = batch(step)
        opt.zero_grad()
        nn.functional.cross_entropy(masked(inputs), targets).backward()
        second.mask_gradients()
        for name, mask in second.masks.items():
            assert not bool((masked.get_parameter(name).grad[~mask] != 0).any())
        opt.step()
    assert same(plain, masked)
    assert first.history == second.history


def test_clipping_by_the_norm_does_not_change_what_grows():
    _, _, _, first = runs = make("rigl")
    clipped = make("rigl")
    for step in range(5):
        for (model, opt, batch, sparsifier), bound in ((runs, None), (clipped, 1e-3)):
            inputs, targets = batch(step)
            opt.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            if step == 4 and bound:
                sparsifier.mask_gradients()
                nn.utils.clip_grad_norm_(model.parameters(), bound)
            opt.step()
    assert all(torch.equal(first.masks[n], m) for n, m in clipped[3].masks.items())


def test_gradients_are_accumulated_before_an_update():
    """Two halves of a batch must grow what the whole batch does."""
    masks = []
    for parts in (1, 2):
        model, opt, batch, sparsifier = make(RigL(drop_fraction=0.9))
        for step in range(9):
            inputs, targets = batch(step)
            opt.zero_grad()
            for x, y in zip(inputs.chunk(parts), targets.chunk(parts)):
                (nn.functional.cross_entropy(model(x), y) / parts).backward()
            opt.step()
        masks.append(sparsifier.masks)
    assert all(torch.equal(masks[0][n], masks[1][n]) for n in masks[0])


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_a_compiled_model_is_compiled_once_and_ends_as_an_eager_one(method):
    torch._dynamo.reset()  # what other tests have compiled counts against a common limit
    counter = torch._dynamo.testing.CompileCounter()
    model, opt, batch, sparsifier = make(method)
    train(torch.compile(model, backend=counter, fullgraph=True), opt, batch, STEPS)
    eager, opt, batch, other = make(method)
    train(eager, opt, batch, STEPS)
    assert counter.frame_count == 1
    assert all(torch.equal(other.masks[n], m) for n, m in sparsifier.masks.items())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model.parameters(), eager.parameters()))


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [t for v in values for t in tensors(v)]


@pytest.mark.parametrize("masking", [False, True])
@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_no_copy_of_weights_or_gradients_stays(method, masking):
    model, opt, batch, sparsifier = make(method)
    own = {id(p) for p in model.parameters()}
    for step in range(10):
        inputs, targets = batch(step)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        if masking:
            sparsifier.mask_gradients()
        opt.step()
        opt.zero_grad()
        held = [t for t in tensors(vars(sparsifier)) if id(t) not in own]
        # Entries and units that are there, and units that ever were: a bit each, of whole bytes a layer.
        assert all(t.dtype == torch.uint8 for t in held)
        masks = sparsifier.masks.values()
        assert sum(t.nbytes for t in held) <= 3 * sum(-(-m.numel() // 8) for m in masks)


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_freezing_by_hand_keeps_the_support(method):
    model, opt, batch, sparsifier = make(method)
    train(model, opt, batch, 6)
    masks = sparsifier.masks
    sparsifier.freeze()
    train(model, opt, batch, 10, start=6)
    assert sparsifier.phase == "frozen"
    assert all(torch.equal(masks[n], m) for n, m in sparsifier.masks.items())
    assert sparsifier.report().exact


def test_two_moving_supports_share_an_optimizer():
    model, opt, batch = build("mlp")
    schedule = setpoint.Schedule("constant", begin=0, end=24, interval=INTERVAL)
    common = {"target": 0.6, "steps": STEPS, "schedule": schedule}
    first = setpoint.Sparsifier(model, opt, method=RigL(replace_step=True), include="0.weight", **common)
    second = setpoint.Sparsifier(model, opt, method=RigL(), exclude="0.weight", **common)
    for step in range(STEPS):
        train(model, opt, batch, 1, start=step)
        assert first.report().exact
        assert second.report().exact
    assert [row["step"] for row in first.history] == [row["step"] for row in second.history]
    assert all(row["moved"] > 0 for s in (first, second) for row in s.history[1:4])


def test_a_skipped_update_warns_of_the_gradients_alone():
    model, opt, batch, sparsifier = make("rigl")
    train(model, opt, batch, 4)
    masks = sparsifier.masks
    (model(batch(0)[0]) * float("nan")).sum().backward()
    with pytest.warns(UserWarning, match="NaN or infinite"):
        opt.step()
    assert all(torch.equal(masks[n], m) for n, m in sparsifier.masks.items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, opt, batch, 4, start=4)
    assert [row["step"] for row in sparsifier.history] == [0, 4]
