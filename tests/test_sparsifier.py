"""The run in other people's loops: every optimizer, scaler, scheduler and compiler that they may use."""

import copy
import warnings

import pytest
import torch
import torch._dynamo.testing
from torch import nn

import setpoint
from setpoint import hooks
from setpoint.methods import ConstrainedL0
from setpoint.run_state import KEY, decode
from test_contract import DENSE_TO_SPARSE, METHODS

from nets import build, mlp, train

STEPS = 20


def zeros_held(model, sparsifier):
    for name, mask in sparsifier.masks.items():
        parameter = model.get_parameter(name)
        assert not bool((parameter[~mask] != 0).any()), name
        assert not bool(torch.signbit(parameter[~mask]).any()), "zeros must be +0.0, which archives drop"


def entries_kept(sparsifier):
    """Entries that stay, counted in the parameters; or in the masks, where some grow at zero and get no gradient."""
    if sparsifier.method.always_sparse:
        return sum(int(mask.sum()) for mask in sparsifier.masks.values())
    return sparsifier.report().params_kept


ADAM_LIKE = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
KINDS = [("sgd", {"momentum": 0.9, "nesterov": True}), ("adam", {}), ("adamw", {"amsgrad": True}), ("rmsprop", {})]
WAYS = [{}, {"foreach": True}, {"fused": True}]


# torch has no fused RMSprop.
PAIRS = [(k, o, w) for k, o in KINDS for w in WAYS if not (k == "rmsprop" and "fused" in w)]


@pytest.mark.parametrize(("kind", "options", "way"), PAIRS, ids=[f"{k}-{next(iter(w), 'plain')}" for k, _, w in PAIRS])
@pytest.mark.parametrize("method", METHODS)
def test_optimizers(method, kind, options, way):
    model, _, batch = build("mlp")
    factory = {"sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop, **ADAM_LIKE}[kind]
    opt = factory(model.parameters(), lr=1e-2, weight_decay=1e-3, **options, **way)
    sparsifier = setpoint.Sparsifier(model, opt, method=method, target=0.9, steps=STEPS)
    train(model, opt, batch, STEPS + 5)
    report = sparsifier.report()
    assert report.exact
    assert entries_kept(sparsifier) == round(0.1 * report.params)
    zeros_held(model, sparsifier)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_scaler_skips_is_skipped(fused):
    model, _, batch = build("mlp")
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=fused)
    sparsifier = setpoint.Sparsifier(model, opt, method="magnitude", target=0.5, steps=STEPS)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    overflows = {3, 17}
    for step in range(STEPS + 2):
        inputs, targets = batch(step)
        opt.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(inputs), targets)
        before = [p.clone() for p in model.parameters()]
        taken = sparsifier.step
        scaler.scale(loss).backward()
        if step in overflows:
            model[0].weight.grad[0, 0] = torch.inf
        scaler.step(opt)
        scaler.update()
        moved = any(not torch.equal(a, b) for a, b in zip(before, model.parameters()))
        assert moved == (step not in overflows)
        assert sparsifier.step == taken + (step not in overflows)
    assert sparsifier.step == STEPS
    assert sparsifier.report().exact
    zeros_held(model, sparsifier)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("closure", [False, True])
def test_a_step_with_gradients_that_are_not_finite_is_skipped(bad, frozen, closure, method):
    model, opt, batch = build("mlp", "adamw")
    sparsifier = setpoint.Sparsifier(model, opt, method=method, target=0.5, steps=STEPS)
    train(model, opt, batch, 16 if frozen else 8)
    weights = copy.deepcopy(model.state_dict())
    masks, state = sparsifier.masks, copy.deepcopy(opt.state_dict()["state"])

    def evaluate():
        opt.zero_grad()
        loss = (model(batch(0)[0]) * bad).sum()
        loss.backward()
        return loss

    if not closure:
        evaluate()
    with pytest.warns(UserWarning, match="NaN or infinite"):
        opt.step(evaluate if closure else None)
    assert sparsifier.step == (16 if frozen else 8)
    assert sparsifier.report().skipped_steps == 1
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), model.state_dict().values()))
    assert all(torch.equal(masks[n], m) for n, m in sparsifier.masks.items())
    after = opt.state_dict()["state"]
    assert all(torch.equal(state[i][k], after[i][k]) for i in state for k in state[i])
    train(model, opt, batch, STEPS, start=20)
    assert sparsifier.report().exact


@pytest.mark.parametrize("method", ["gsp", "magnitude", "rigl"])
def test_unchecked_steps_look_at_no_gradient_and_end_where_checked_ones_do(method, monkeypatch):
    looked = []
    inner = hooks._finite
    monkeypatch.setattr(hooks, "_finite", lambda gradients: looked.append(1) or inner(gradients))
    ends = []
    for nonfinite in ("skip", "unchecked"):
        looked.clear()
        model, opt, batch = build("mlp")
        sparsifier = setpoint.Sparsifier(model, opt, method=method, target=0.5, steps=STEPS, nonfinite=nonfinite)
        train(model, opt, batch, STEPS)
        assert sparsifier.report().exact
        assert len(looked) == (STEPS if nonfinite == "skip" else 0)
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_weights_that_are_not_finite_are_told_at_the_next_update():
    model, opt, batch = build("mlp")
    sparsifier = setpoint.Sparsifier(model, opt, target=0.5, steps=STEPS, nonfinite="unchecked")
    (model(batch(0)[0]) * float("nan")).sum().backward()
    opt.step()
    with pytest.raises(FloatingPointError, match=r"'0\.weight' holds NaN or infinite values at step"):
        train(model, opt, batch, STEPS - 1, start=1)
    assert sparsifier.phase != "frozen"


def test_a_step_can_be_refused_instead_and_divergence_ends_the_run():
    model, opt, batch = build("mlp")
    setpoint.Sparsifier(model, opt, target=0.5, steps=STEPS, nonfinite="raise")
    (model(batch(0)[0]) * float("nan")).sum().backward()
    with pytest.raises(FloatingPointError, match="nothing was changed"):
        opt.step()
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())

    model, opt, batch = build("mlp")
    setpoint.Sparsifier(model, opt, target=0.5, steps=STEPS)

    def diverge():
        for _ in range(200):
            (model(batch(0)[0]) * float("nan")).sum().backward()
            opt.step()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FloatingPointError, match="diverged"):
            diverge()


def test_large_finite_gradients_are_no_reason_to_skip():
    model, opt, _ = build("mlp")
    sparsifier = setpoint.Sparsifier(model, opt, target=0.5, steps=STEPS)
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e30)
    for group in opt.param_groups:
        group["lr"] = 1e-33
    opt.step()
    assert sparsifier.step == 1


def test_weights_that_diverge_stop_the_run_with_masks_intact():
    model, opt, batch = build("mlp")
    sparsifier = setpoint.Sparsifier(model, opt, target=0.5, steps=STEPS)
    train(model, opt, batch, 3)
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"2\.weight"):
        sparsifier.freeze()
    assert sparsifier.phase == "sparsify"


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_clipping_and_a_scheduler(method):
    model, opt, batch = build("mlp")
    parameters = dict(model.named_parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=STEPS)
    sparsifier = setpoint.Sparsifier(model, opt, method=method, target=0.8, steps=STEPS)
    for step in range(STEPS):
        opt.zero_grad()
        for half in (0, 1):
            inputs, targets = batch(2 * step + half)
            (nn.functional.cross_entropy(model(inputs), targets) / 2).backward()
        sparsifier.mask_gradients()
        for name, mask in sparsifier.masks.items():
            assert not bool((parameters[name].grad[~mask] != 0).any())
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        opt.step()
        scheduler.step()
    assert sparsifier.step == STEPS
    assert sparsifier.report().exact
    zeros_held(model, sparsifier)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_compiled_models(when, method):
    model, _, batch = build("mlp")
    if when == "before":
        model = torch.compile(model, backend="eager", fullgraph=True)
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    sparsifier = setpoint.Sparsifier(model, opt, method=method, target=0.8, steps=STEPS)
    running = model if when == "before" else torch.compile(model, backend="eager", fullgraph=True)
    train(running, opt, batch, STEPS)
    assert set(sparsifier.masks) == {"0.weight", "2.weight", "4.weight"}
    assert sparsifier.report().exact
    plain, other, _ = build("mlp")
    other = torch.optim.SGD(plain.parameters(), lr=0.05)
    setpoint.Sparsifier(plain, other, method=method, target=0.8, steps=STEPS)
    train(plain, other, batch, STEPS)
    for a, b in zip(plain.parameters(), model.parameters()):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_compiled_submodule_keeps_its_plain_names():
    model, _, batch = build("mlp")
    model[2] = torch.compile(model[2], backend="eager")
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    sparsifier = setpoint.Sparsifier(model, opt, target=0.8, steps=STEPS, include="2.*")
    train(model, opt, batch, STEPS)
    assert set(sparsifier.masks) == {"2.weight"}
    assert sparsifier.report().exact


def test_compiled_model_is_compiled_once():
    torch._dynamo.reset()  # what other tests have compiled counts against a common limit
    counter = torch._dynamo.testing.CompileCounter()
    model, opt, batch = build("mlp")
    setpoint.Sparsifier(model, opt, target=0.8, steps=STEPS)
    train(torch.compile(model, backend=counter), opt, batch, STEPS)
    assert counter.frame_count == 1


def test_phases_and_boundaries():
    model, opt, batch = build("mlp")
    schedule = setpoint.Schedule("linear", begin=4, end=10, interval=2)
    sparsifier = setpoint.Sparsifier(model, opt, method="magnitude", target=0.6, steps=STEPS, schedule=schedule)
    seen = []
    for step in range(12):
        train(model, opt, batch, 1, start=step)
        report = sparsifier.report()
        seen.append((report.phase, round(report.sparsity, 2)))
    assert [p for p, _ in seen] == ["dense"] * 3 + ["sparsify"] * 6 + ["frozen"] * 3
    assert [s for _, s in seen] == [0, 0, 0, 0, 0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.6]


@pytest.mark.parametrize("method", DENSE_TO_SPARSE)
def test_one_shot_cuts_at_the_end_only(method):
    model, opt, batch = build("mlp")
    schedule = setpoint.Schedule("one-shot", end=15)
    sparsifier = setpoint.Sparsifier(model, opt, method=method, target=0.6, steps=STEPS, schedule=schedule)
    train(model, opt, batch, 14)
    assert sparsifier.report().sparsity == 0
    train(model, opt, batch, 6, start=14)
    assert sparsifier.report().exact


# Gates take some dozens of steps to shut, unless they are made to hurry.
@pytest.mark.parametrize(
    "method", [ConstrainedL0(lr=1.0) if m == "l0" else m for m in DENSE_TO_SPARSE], ids=DENSE_TO_SPARSE
)
def test_more_and_more_is_removed_before_the_cut(method):
    model, opt, batch = build("mlp")
    sparsifier = setpoint.Sparsifier(model, opt, method=method, target=0.8, steps=100)
    seen = []
    for step in range(49):
        train(model, opt, batch, 1, start=step)
        seen.append(sparsifier.sparsity)
    assert seen[9] == 0.0
    assert seen[14] < seen[24] < seen[48]
    assert seen[48] > 0.75
    train(model, opt, batch, 1, start=49)
    assert sparsifier.phase == "frozen"
    assert sparsifier.sparsity == sparsifier.report().sparsity == pytest.approx(0.8, abs=1e-3)


class Idle(nn.Module):
    """Beside a layer that is of use, one whose outputs hardly count."""

    def __init__(self):
        super().__init__()
        self.useful, self.idle = nn.Linear(20, 12), nn.Linear(20, 6)
        self.head = nn.Linear(18, 8)
        with torch.no_grad():
            self.idle.weight.mul_(1e-3)
            self.head.weight[:, 12:].mul_(1e-3)

    def forward(self, x):
        return self.head(torch.relu(torch.cat([self.useful(x), self.idle(x)], 1)))


@pytest.mark.parametrize("method", [m for m in DENSE_TO_SPARSE if m != "gsp"])  # which does not mind small weights
@pytest.mark.parametrize("unit", ["weight", "row"])
@pytest.mark.parametrize("floor", [0, 1, 3])
def test_no_layer_loses_the_units_of_its_floor(method, unit, floor):
    _, _, batch = build("mlp")
    torch.manual_seed(0)
    model = Idle()
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    if method in ("wgsef", "hoyer"):
        method = setpoint.methods.make_method(method, scale_invariant=False)
    sparsifier = setpoint.Sparsifier(
        model, opt, method=method, target=0.5, unit=unit, floor=floor, steps=60, exclude="head.*"
    )
    train(model, opt, batch, 60)
    useful, idle = sparsifier.report().layers
    assert idle.units_kept == floor
    assert (idle.params_kept > 0) == (floor > 0)
    assert useful.units_kept + idle.units_kept == (useful.units + idle.units) // 2
    assert bool(torch.isfinite(model(batch(0)[0])).all())


def test_freeze_by_hand_ends_the_phase_early_and_is_idempotent():
    model, opt, batch = build("mlp")
    sparsifier = setpoint.Sparsifier(model, opt, target=0.7, steps=STEPS)
    train(model, opt, batch, 3)
    sparsifier.freeze()
    masks = sparsifier.masks
    assert sparsifier.phase == "frozen"
    assert sparsifier.report().exact
    sparsifier.freeze()
    train(model, opt, batch, STEPS * 2, start=3)  # more steps than announced: frozen, harmless
    assert all(torch.equal(masks[n], m) for n, m in sparsifier.masks.items())
    assert sparsifier.report().exact
    zeros_held(model, sparsifier)


@pytest.mark.parametrize("method", METHODS)
def test_momentum_of_what_is_gone_is_forgotten(method):
    model, opt, batch = build("mlp", "adamw")
    sparsifier = setpoint.Sparsifier(model, opt, method=method, target=0.7, steps=STEPS)
    train(model, opt, batch, 10)
    for name, mask in sparsifier.masks.items():
        state = opt.state[model.get_parameter(name)]
        assert not bool((state["exp_avg"][~mask] != 0).any())
        assert bool((state["exp_avg"][mask] != 0).any())


@pytest.mark.parametrize("method", METHODS)
def test_zeros_are_in_the_models_own_parameters(method):
    model, opt, batch = build("convnet")
    names = [n for n, _ in model.named_parameters()]
    sparsifier = setpoint.Sparsifier(model, opt, method=method, target=0.7, unit="filter", steps=STEPS)
    train(model, opt, batch, STEPS)
    twin = copy.deepcopy(model)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values()))
    assert [n for n, _ in twin.named_parameters()] == names
    assert all(int((twin.get_parameter(n) == 0).sum()) >= int((~m).sum()) for n, m in sparsifier.masks.items())
    assert not any(isinstance(m, nn.utils.parametrize.ParametrizationList) for m in model.modules())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("unit", ["weight", "row", "2:4"])
@pytest.mark.parametrize("cut", [1, 6, 9, 10, 17])
def test_resumed_run_ends_in_the_same_bits(tmp_path, method, optimizer, unit, cut):
    def fresh():
        model, opt, batch = build("mlp", optimizer)
        sparsity = 0.4 if unit == "2:4" else 0.6
        return (
            model,
            opt,
            batch,
            setpoint.Sparsifier(model, opt, method=method, target=sparsity, unit=unit, steps=STEPS),
        )

    model, opt, batch, _ = fresh()
    train(model, opt, batch, STEPS)

    first, first_opt, batch, _ = fresh()
    train(first, first_opt, batch, cut)
    torch.save({"model": first.state_dict(), "optimizer": first_opt.state_dict()}, tmp_path / "checkpoint.pt")
    second, second_opt, batch, sparsifier = fresh()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    second.load_state_dict(saved["model"])
    second_opt.load_state_dict(saved["optimizer"])
    assert sparsifier.step == cut
    train(second, second_opt, batch, STEPS - cut, start=cut)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), second.state_dict().values()))


def test_state_of_another_run_is_refused_and_changes_nothing():
    model, opt, batch = build("mlp")
    sparsifier = setpoint.Sparsifier(model, opt, target=0.7, steps=STEPS)
    train(model, opt, batch, 15)
    state = sparsifier.state_dict()
    for changes, what in [({"target": 0.8}, "target"), ({"unit": "row"}, "unit"), ({"method": "magnitude"}, "method")]:
        model, opt, batch = build("mlp")
        other = setpoint.Sparsifier(model, opt, **({"target": 0.7, "steps": STEPS} | changes))
        with pytest.raises(ValueError, match=what):
            other.load_state_dict(state)
        assert other.step == 0


def test_a_checkpoint_from_before_the_sparsifier_still_loads():
    model, opt, batch = build("mlp", "adamw")
    train(model, opt, batch, 3)
    dense = copy.deepcopy(opt.state_dict())
    sparsifier = setpoint.Sparsifier(model, opt, target=0.7, steps=STEPS)
    opt.load_state_dict(dense)
    assert sparsifier.step == 0


def test_two_sparsifiers_share_an_optimizer_but_no_parameter():
    model, opt, batch = build("mlp")
    first = setpoint.Sparsifier(model, opt, target=0.7, steps=STEPS, include="0.weight")
    second = setpoint.Sparsifier(model, opt, target=0.4, steps=STEPS, exclude="0.weight", method="magnitude")
    train(model, opt, batch, STEPS)
    assert first.report().exact
    assert second.report().exact
    assert len(decode(opt.state_dict()["param_groups"][0][KEY])) == 2
    with pytest.raises(ValueError, match="already held"):
        setpoint.Sparsifier(model, opt, target=0.5, steps=STEPS)
    first.remove()
    third = setpoint.Sparsifier(model, opt, target=0.9, steps=STEPS, include="0.weight")
    train(model, opt, batch, STEPS)
    assert third.report().exact


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_other_dtypes(dtype, method):
    model, _, batch = build("mlp")
    model = model.to(dtype)
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    sparsifier = setpoint.Sparsifier(model, opt, method=method, target=0.8, steps=STEPS)
    for step in range(STEPS):
        inputs, targets = batch(step)
        opt.zero_grad()
        nn.functional.cross_entropy(model(inputs.to(dtype)).float(), targets).backward()
        opt.step()
    report = sparsifier.report()
    assert report.exact
    assert entries_kept(sparsifier) == round(0.2 * report.params)
    zeros_held(model, sparsifier)
    assert all(p.dtype == dtype for p in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_training_under_autocast(method):
    model, opt, batch = build("convnet", "adamw")
    sparsifier = setpoint.Sparsifier(model, opt, method=method, target=0.8, steps=STEPS)
    for step in range(STEPS):
        inputs, targets = batch(step)
        opt.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        opt.step()
    report = sparsifier.report()
    assert report.exact
    assert entries_kept(sparsifier) == round(0.2 * report.params)
    zeros_held(model, sparsifier)


@pytest.mark.parametrize("method", METHODS)
def test_channels_last_parameters(method):
    model, _, batch = build("convnet")
    model = model.to(memory_format=torch.channels_last)
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    sparsifier = setpoint.Sparsifier(model, opt, method=method, target=0.6, unit="kernel", steps=STEPS)
    train(model, opt, batch, STEPS)
    assert sparsifier.report().exact


def test_shared_parameters_are_counted_once_and_embeddings_left():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(12, 8)
            self.first = nn.Linear(8, 8)
            self.again = nn.Linear(8, 8)
            self.again.weight = self.first.weight
            self.head = nn.Linear(8, 12, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(torch.relu(self.again(torch.relu(self.first(self.embed(x).mean(1))))))

    torch.manual_seed(0)
    model = Tied()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = setpoint.Sparsifier(model, opt, target=0.5, steps=STEPS)
    for step in range(STEPS):
        opt.zero_grad()
        nn.functional.cross_entropy(model(torch.randint(12, (4, 3))), torch.tensor([1, 2, 3, step % 12])).backward()
        opt.step()
    report = sparsifier.report()
    assert [layer.name for layer in report.layers] == ["first.weight"]
    assert report.params == 64
    assert "embedding" in report.left_dense["embed.weight"]
    assert model.again.weight is model.first.weight
    # Named in full, an embedding may be taken after all.
    other = Tied()
    opt = torch.optim.SGD(other.parameters(), lr=0.1)
    assert set(setpoint.Sparsifier(other, opt, target=0.5, steps=STEPS, include="embed.weight").masks) == {
        "embed.weight"
    }


def test_report_reads_as_text_and_as_json():
    import json

    model, opt, batch = build("mlp")
    sparsifier = setpoint.Sparsifier(model, opt, target=0.9, steps=STEPS, scope="uniform")
    train(model, opt, batch, STEPS)
    report = sparsifier.report()
    assert "2.weight" in str(report)
    assert "90.00%" in str(report)
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["exact"] is True
    assert plain["layers"][0]["sparsity"] == pytest.approx(0.9, abs=0.01)


def test_float_sparsity_that_is_no_round_number_is_met_to_the_nearest_count():
    for sparsity in (0.1234567, 0.5, 0.98765):
        model, opt, batch = build("mlp")
        sparsifier = setpoint.Sparsifier(
            model, opt, target=sparsity, steps=3, schedule=setpoint.Schedule(begin=0, end=1)
        )
        train(model, opt, batch, 3)
        report = sparsifier.report()
        assert report.params_kept == round(report.params * (1 - sparsity))


def test_distributed_wrapper_is_seen_through(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = mlp()
        wrapped = nn.parallel.DistributedDataParallel(model)
        opt = torch.optim.SGD(wrapped.parameters(), lr=0.05)
        sparsifier = setpoint.Sparsifier(wrapped, opt, target=0.8, steps=STEPS)
        _, _, batch = build("mlp")
        train(wrapped, opt, batch, STEPS)
        assert set(sparsifier.masks) == {"0.weight", "2.weight", "4.weight"}
        assert sparsifier.report().exact
    finally:
        torch.distributed.destroy_process_group()


def test_a_run_that_is_forgotten_frees_its_parameters():
    model, opt, batch = build("mlp")
    setpoint.Sparsifier(model, opt, target=0.5, steps=STEPS)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)  # the first optimizer, and its run, are gone
    sparsifier = setpoint.Sparsifier(model, opt, target=0.7, steps=STEPS)
    train(model, opt, batch, STEPS)
    assert sparsifier.report().exact


def test_layers_that_no_glob_names_stay_dense_and_are_reported():
    model, opt, batch = build("mlp")
    sparsifier = setpoint.Sparsifier(model, opt, scope={"2.*": 0.5}, steps=STEPS)
    train(model, opt, batch, STEPS)
    assert set(sparsifier.masks) == {"2.weight"}
    assert set(sparsifier.report().left_dense) == {"0.weight", "4.weight"}
    assert all(bool((model[i].weight != 0).all()) for i in (0, 4))


def test_wrapped_optimizers_are_seen_through():
    class Wrapper:
        """As training frameworks wrap one: steps go to the optimizer inside."""

        def __init__(self, optimizer):
            self.optimizer = optimizer

        def __getattr__(self, name):
            return getattr(self.optimizer, name)

    model, opt, batch = build("mlp")
    sparsifier = setpoint.Sparsifier(model, Wrapper(opt), target=0.5, steps=STEPS)
    train(model, Wrapper(opt), batch, STEPS)
    assert sparsifier.report().exact


def test_gradients_are_masked_after_a_step_that_was_refused():
    model = nn.Linear(6, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    sparsifier = setpoint.Sparsifier(model, optimizer, target=0.5, steps=4)
    sparsifier.freeze()
    pruned = ~sparsifier.masks["weight"]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    with pytest.warns(UserWarning, match="NaN or infinite"):
        optimizer.step()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    # As a gradient scaler does for a fused optimizer: nobody looks at the gradients here then.
    optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.zeros(())
    optimizer.step()
    assert not bool(model.weight[pruned].any())
