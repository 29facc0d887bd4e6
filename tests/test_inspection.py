"""The report counts what the model holds now, and what was done to it since is named."""

import copy
import gc
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import setpoint

from nets import build, train

STEPS = 20
METHODS = ("magnitude", "gsp", "wgsef", "l0", "hoyer", "static", "set", "rigl")


def run(method="magnitude", steps=STEPS, net="mlp", target=0.8, **options):
    model, opt, batch = build(net)
    sparsifier = setpoint.Sparsifier(model, opt, method=method, target=target, steps=steps, **options)
    return model, opt, batch, sparsifier


def zeros(model: nn.Module) -> float:
    weights = [p for name, p in model.named_parameters() if p.ndim > 1]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


@pytest.mark.parametrize("method", METHODS)
def test_an_earlier_state_is_no_longer_exact_until_the_zeros_are_applied(method):
    model, opt, batch, sparsifier = run(method)
    dense = copy.deepcopy(model.state_dict())
    train(model, opt, batch, STEPS)
    assert sparsifier.exact
    assert sparsifier.report().differences == {}
    left = copy.deepcopy(model.state_dict())
    model.load_state_dict({name: torch.full_like(tensor, 0.5) for name, tensor in dense.items()})
    report = sparsifier.report()
    assert not report.exact
    assert not sparsifier.exact
    assert sparsifier.sparsity == report.sparsity == zeros(model) == 0.0
    assert set(report.differences) == {"0.weight", "2.weight", "4.weight"}
    assert "are not zero" in report.differences["0.weight"]
    assert "NOT EXACT: 0.weight" in str(report)
    sparsifier.apply()
    assert sparsifier.exact
    assert sparsifier.report().params_kept == sum(int(m.sum()) for m in sparsifier.masks.values())
    model.load_state_dict(left)
    assert sparsifier.exact


def test_one_entry_that_somebody_wrote_is_seen():
    model, opt, batch, sparsifier = run()
    train(model, opt, batch, STEPS)
    at = (~sparsifier.masks["2.weight"]).nonzero()[0]
    model[2].weight.data[tuple(at)] = 1e-3
    report = sparsifier.report()
    assert not report.exact
    assert report.differences.keys() == {"2.weight"}
    assert report.differences["2.weight"].startswith("1 of its ")
    assert report.params_kept == int(sparsifier.masks["0.weight"].sum()) + int((model[2].weight != 0).sum()) + int(
        (model[4].weight != 0).sum()
    )


def test_parameters_that_were_assigned_are_counted_under_their_names():
    model, opt, batch, sparsifier = run()
    dense = copy.deepcopy(model.state_dict())
    train(model, opt, batch, STEPS)
    model.load_state_dict(dense, assign=True)
    report = sparsifier.report()
    assert not report.exact
    assert report.sparsity == zeros(model) == 0.0
    assert "another tensor" in report.detached["0.weight"]
    sparsifier.apply()
    assert sparsifier.exact
    assert zeros(model) == pytest.approx(sparsifier.sparsity)
    assert "another tensor" in sparsifier.report().detached["0.weight"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_exact(bad):
    model, opt, batch, sparsifier = run(nonfinite="unchecked")
    train(model, opt, batch, STEPS)
    at = sparsifier.masks["0.weight"].nonzero()[0]
    model[0].weight.data[tuple(at)] = bad
    report = sparsifier.report()
    assert not report.exact
    assert "NaN or infinite" in report.differences["0.weight"]


@pytest.mark.parametrize("frozen", [False, True])
def test_layers_that_were_replaced_are_named_and_dense(frozen):
    model, opt, batch, sparsifier = run()
    train(model, opt, batch, STEPS if frozen else 12)
    model[4] = nn.Linear(16, 5)
    report = sparsifier.report()
    assert not report.exact
    assert "replaced by one of shape (5, 16)" in report.differences["4.weight"]
    assert next(la for la in report.layers if la.name == "4.weight").sparsity == 0.0
    model[4] = nn.Identity()
    assert "no parameter of this name" in sparsifier.report().differences["4.weight"]


def test_layers_that_join_later_are_named_and_not_counted_as_sparse():
    model, opt, batch, sparsifier = run()
    model.append(nn.Linear(8, 8))
    opt.add_param_group({"params": model[5].parameters()})
    train(model, opt, batch, STEPS)
    report = sparsifier.report()
    assert report.exact
    assert "not in the model when the run was built" in report.left_dense["5.weight"]
    assert report.model_params == sum(p.numel() for p in model.parameters())
    assert f"covers {report.params:,} / {report.model_params:,} of the model" in str(report).splitlines()[1]


def test_compact_refuses_what_is_not_the_runs_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(5, 8)
    sparsifier = setpoint.Sparsifier(model, opt, target=0.5, unit="neuron", steps=STEPS, example_inputs=x)
    dense = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"step 0 of 20.*freeze"):
        setpoint.compact(sparsifier)
    for _ in range(STEPS):
        opt.zero_grad()
        model(x).square().mean().backward()
        opt.step()
    left = copy.deepcopy(model.state_dict())
    model.load_state_dict(dense)
    with pytest.raises(ValueError, match=r"0\.weight: .* are not zero.*apply"):
        setpoint.compact(sparsifier)
    sparsifier.apply()
    small = setpoint.compact(sparsifier, x)
    assert torch.allclose(small(x), model(x), atol=1e-6)
    model.load_state_dict(left)
    assert setpoint.compact(sparsifier, x)[0].out_features == small[0].out_features


@pytest.mark.parametrize("use", ["save", "export", "report"])
def test_what_is_used_before_its_target_was_met_says_so(use, tmp_path):
    model, opt, batch, sparsifier = run(steps=100)
    train(model, opt, batch, 5)

    def go():
        if use == "report":
            sparsifier.report()
        elif use == "save":
            setpoint.save(model, tmp_path / "a.safetensors")
        else:
            setpoint.export(model, tmp_path / "a.pt2", batch(0)[0])

    with pytest.warns(setpoint.UnfinishedRunWarning, match="step 5 of 100.*accumulation") as seen:
        go()
    assert seen[0].filename == __file__


@pytest.mark.parametrize("use", ["save", "export"])
def test_a_model_that_is_not_what_the_run_left_is_not_used_in_silence(use, tmp_path):
    model, opt, batch, sparsifier = run()
    train(model, opt, batch, STEPS)
    model[0].weight.data.fill_(1.0)
    uses = {
        "save": lambda: setpoint.save(model, tmp_path / "a.safetensors"),
        "export": lambda: setpoint.export(model, tmp_path / "a.pt2", batch(0)[0]),
    }
    with pytest.warns(UserWarning, match=r"not what the run left: 0\.weight.*apply") as seen:
        uses[use]()
    assert seen[0].filename == __file__
    sparsifier.apply()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        setpoint.save(model, tmp_path / "a.safetensors")


def test_a_run_that_is_forgotten_before_its_target_says_so():
    model, opt, batch, sparsifier = run(steps=100)
    train(model, opt, batch, 5)
    gc.collect()  # what other tests have forgotten
    del sparsifier, opt
    with pytest.warns(setpoint.UnfinishedRunWarning, match="gone before its target was met, at step 5 of 100"):
        gc.collect()


@pytest.mark.parametrize("ended", ["frozen", "removed", "untouched"])
def test_a_run_that_met_its_target_or_was_let_go_is_forgotten_in_silence(ended):
    model, opt, batch, sparsifier = run(steps=10)
    train(model, opt, batch, {"frozen": 10, "removed": 5, "untouched": 0}[ended])
    if ended == "removed":
        sparsifier.remove()
    gc.collect()  # what other tests have forgotten
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del sparsifier, opt
        gc.collect()


def test_a_run_whose_optimizer_never_steps_names_the_cause():
    model, _opt, batch, sparsifier = run()
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, other, batch, STEPS)
    with pytest.warns(setpoint.UnfinishedRunWarning, match="step 0 of 20: no step of the optimizer.*another optimizer"):
        report = sparsifier.report()
    assert not report.exact


def test_looking_at_the_plan_is_no_misuse():
    _, _, _, sparsifier = run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsifier.report()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_an_average_that_the_run_follows_ends_exact(method, kind):
    model, opt, batch, sparsifier = run(method)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9) if kind == "ema" else None)
    sparsifier.follow(average)
    for step in range(STEPS + 3):
        train(model, opt, batch, 1, start=step)
        average.update_parameters(model)
    for name, mask in sparsifier.masks.items():
        weight = average.module.get_parameter(name)
        assert not bool((weight[~mask] != 0).any())
        assert bool((weight[mask] != 0).any())
    model.load_state_dict(average.module.state_dict())
    assert sparsifier.exact


def test_zeros_are_applied_to_an_average_that_nobody_followed():
    model, opt, batch, sparsifier = run()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    with pytest.raises(ValueError, match="dense phase, at step 0 of 20"):
        sparsifier.apply(average)
    for step in range(STEPS):
        train(model, opt, batch, 1, start=step)
        average.update_parameters(model)
    assert zeros(average.module) < 0.5
    sparsifier.apply(average)
    assert zeros(average.module) >= zeros(model) - 1e-9
    model.load_state_dict(average.module.state_dict())
    assert sparsifier.exact
    with pytest.raises(ValueError, match=r"no copy of the run's model: its parameter '0\.weight'"):
        sparsifier.apply(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="no copy of the run's model"):
        sparsifier.follow(nn.Linear(3, 3))


ZEROS = {
    "all": lambda weight: weight.zero_(),
    "a soft threshold": lambda weight: weight.copy_(
        weight.sign() * (weight.abs() - weight[weight != 0].abs().median()).clamp(min=0.0)
    ),
    "the half": lambda weight: weight.flatten()[::2].zero_(),
    "underflow": lambda weight: weight.mul_(1e-30).mul_(1e-30),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", ZEROS)
def test_more_zeros_than_were_asked_for_are_not_exact_either(method, way):
    model, opt, batch, sparsifier = run(method)
    train(model, opt, batch, STEPS)
    assert sparsifier.exact
    with torch.no_grad():
        ZEROS[way](model[0].weight)
    report = sparsifier.report()
    assert not report.exact
    assert "kept are zero" in report.differences["0.weight"]
    left = {la.name: la for la in report.layers}["0.weight"]
    assert left.units_kept == left.params_kept == int((model[0].weight != 0).sum())


def test_kept_rows_that_are_zero_are_seen():
    model, opt, batch, sparsifier = run(unit="row")
    train(model, opt, batch, STEPS)
    with torch.no_grad():
        model[0].weight.zero_()
    report = sparsifier.report()
    assert not report.exact
    assert report.layers[0].units_kept == 0


def test_weights_that_were_zero_when_they_were_kept_are_no_difference():
    model, opt, batch = build("mlp")
    with torch.no_grad():
        model[0].weight[:, ::2] = 0.0
        model[2].weight.zero_()
        model[4].weight.zero_()
    opt.param_groups[0]["lr"] = 0.0
    sparsifier = setpoint.Sparsifier(model, opt, method="magnitude", target=0.1, steps=STEPS)
    train(model, opt, batch, STEPS)
    assert sparsifier.report().differences == {}
    assert sparsifier.exact


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_a_run_that_is_sparse_throughout_has_met_its_target_from_the_start(method):
    gc.collect()  # what other tests have forgotten
    model, opt, batch, sparsifier = run(method)
    train(model, opt, batch, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sparsifier.report().exact
        del sparsifier, opt
        gc.collect()


def test_a_hoyer_sparsity_that_is_reached_is_exact():
    model, opt, batch, sparsifier = run("gsp", target=setpoint.Target(hoyer=0.8))
    assert not sparsifier.exact
    train(model, opt, batch, STEPS)
    report = sparsifier.report()
    assert report.exact
    assert report.hoyer >= report.hoyer_asked - 1e-6 == 0.8 - 1e-6
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    assert not sparsifier.exact


HOYER = {
    "with a budget": setpoint.Target(hoyer=0.6, sparsity=0.5),
    "alone": setpoint.Target(hoyer=0.6),
    "below what there is": setpoint.Target(hoyer=0.1, sparsity=0.5),
}


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("target", HOYER)
@pytest.mark.parametrize("way", ZEROS)
@pytest.mark.parametrize("which", [("0.weight",), ("0.weight", "2.weight", "4.weight")])
def test_zeros_beside_those_that_a_hoyer_sparsity_left_are_seen_and_counted(scope, target, way, which, tmp_path):
    model, opt, batch, sparsifier = run("gsp", target=HOYER[target], scope=scope)
    train(model, opt, batch, STEPS + 3)
    report = sparsifier.report()
    assert report.exact
    assert report.differences == {}
    with torch.no_grad():
        for name in which:
            ZEROS[way](model.get_parameter(name))
    report = sparsifier.report()
    assert not report.exact
    assert report.differences.keys() == set(which)
    assert "kept are zero" in report.differences["0.weight"]
    there = {name: int((model.get_parameter(name) != 0).sum()) for name in ("0.weight", "2.weight", "4.weight")}
    assert {la.name: la.units_kept for la in report.layers} == there
    assert sum(budget.kept for budget in report.budgets) == report.params_kept == sum(there.values())
    with pytest.warns(UserWarning, match=r"not what the run left: 0\.weight"):
        setpoint.save(model, tmp_path / "a.safetensors")
    sparsifier.apply()
    assert not sparsifier.exact
    assert "0.weight" in sparsifier.report().differences


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("target", HOYER)
def test_every_frozen_state_of_a_run_to_a_hoyer_sparsity_is_exact(scope, target, tmp_path):
    model, opt, batch, sparsifier = run("gsp", target=HOYER[target], scope=scope)
    train(model, opt, batch, STEPS)
    early = copy.deepcopy(model.state_dict())
    train(model, opt, batch, 3, start=STEPS)
    again, opt2, _, resumed = run("gsp", target=HOYER[target], scope=scope)
    again.load_state_dict(model.state_dict())
    opt2.load_state_dict(opt.state_dict())
    copied = copy.deepcopy((model, opt, sparsifier))[2]
    for other in (resumed, copied):
        assert other.exact
        assert other.report().differences == {}
    model.load_state_dict(early)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        setpoint.save(model, tmp_path / "a.safetensors")
    assert sparsifier.exact


@pytest.mark.parametrize("assign", [False, True])
def test_a_hoyer_sparsity_is_measured_in_the_model_and_reached_again_by_applying(assign, tmp_path):
    model, opt, batch, sparsifier = run("gsp", target=setpoint.Target(hoyer=0.8, sparsity=0.5))
    train(model, opt, batch, STEPS)
    masks = sparsifier.masks
    state = {n: torch.ones_like(t) * masks[n] if n in masks else t for n, t in model.state_dict().items()}
    model.load_state_dict(state, assign=assign)
    report = sparsifier.report()
    assert report.differences == {}
    assert not report.exact
    assert report.hoyer < 0.5
    assert "NOT EXACT: 0.weight, 2.weight, 4.weight: budget" in str(report)
    with pytest.warns(UserWarning, match="does not meet the target of its run.*Hoyer sparsity 0.*0.8 asked for"):
        setpoint.save(model, tmp_path / "a.safetensors")
    sparsifier.apply()
    assert sparsifier.exact


def test_a_hoyer_sparsity_of_one_layer_does_not_make_up_for_another():
    model, opt, batch, sparsifier = run("gsp", target=setpoint.Target(hoyer=0.6), scope="uniform")
    train(model, opt, batch, STEPS)
    with torch.no_grad():
        model[0].weight.masked_fill_(sparsifier.masks["0.weight"], 1.0)
    report = sparsifier.report()
    assert not report.exact
    assert [budget.exact for budget in report.budgets] == [False, True, True]


def test_a_hoyer_sparsity_is_reached_for_good_once_it_is_frozen():
    model, opt, batch, sparsifier = run("gsp", target=setpoint.Target(hoyer=0.6))
    train(model, opt, batch, 8)
    assert sparsifier.phase == "sparsify"
    with torch.no_grad():
        for weight in (model[0].weight, model[2].weight, model[4].weight):
            weight.zero_()
    assert not sparsifier.exact


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_hoyer_sparsity_of_what_is_not_finite_is_none(bad):
    model, opt, batch, sparsifier = run("gsp", target=setpoint.Target(hoyer=0.6))
    train(model, opt, batch, STEPS)
    at = sparsifier.masks["0.weight"].nonzero()[0]
    model[0].weight.data[tuple(at)] = bad
    report = sparsifier.report()
    assert not report.exact
    assert report.hoyer != report.hoyer
    assert "NaN or infinite" in report.differences["0.weight"]


def channels(steps=STEPS, unit="channel"):
    torch.manual_seed(0)
    front = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    model = nn.Sequential(*front, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    opt, x = torch.optim.SGD(model.parameters(), lr=0.05), torch.randn(3, 3, 6, 6)
    sparsifier = setpoint.Sparsifier(
        model, opt, method="magnitude", target=0.3, unit=unit, steps=steps, example_inputs=x
    )
    for _ in range(steps):
        opt.zero_grad()
        model(x).square().mean().backward()
        opt.step()
    return model, x, sparsifier


@pytest.mark.parametrize("name", ["0.weight", "1.weight", "1.bias", "3.weight", "7.weight"])
def test_a_part_of_kept_channels_that_has_become_zero_is_a_difference(name, tmp_path):
    model, x, sparsifier = channels()
    assert sparsifier.exact
    before = sparsifier.report()
    with torch.no_grad():
        model.get_parameter(name).zero_()
    report = sparsifier.report()
    assert not report.exact
    assert name in report.differences
    assert "kept are zero in it" in report.differences[name]
    assert report.params_kept < before.params_kept
    with pytest.warns(UserWarning, match=f"not what the run left.*{name}"):
        setpoint.save(model, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=name):
        setpoint.compact(sparsifier, x)


def test_a_part_of_one_kept_channel_that_has_become_zero_is_a_difference():
    model, _, sparsifier = channels()
    kept = int(sparsifier.masks["0.weight"].flatten(1).any(1).nonzero()[0])
    with torch.no_grad():
        model[0].weight[kept] = 0.0
    assert not sparsifier.exact
    assert sparsifier.report().differences["0.weight"].startswith("1 of the ")


def test_parts_that_were_zero_when_their_channels_were_kept_are_no_difference():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    opt, x = torch.optim.SGD(model.parameters(), lr=0.0), torch.randn(3, 6)
    with torch.no_grad():
        model[0].bias.zero_()
    sparsifier = setpoint.Sparsifier(
        model, opt, method="magnitude", target=0.3, unit="neuron", steps=2, example_inputs=x
    )
    sparsifier.freeze()
    assert sparsifier.exact
    assert sparsifier.report().differences == {}


@pytest.mark.parametrize("phase", ["sparsify", "frozen"])
@pytest.mark.parametrize("method", ["magnitude", "l0"])
@pytest.mark.parametrize("way", ["assign", "overwrite", "module"])
def test_a_model_whose_parameters_were_replaced_is_not_used_in_silence(method, phase, way, tmp_path):
    model, opt, batch, sparsifier = run(method)
    early = {name: torch.full_like(tensor, 0.5) for name, tensor in model.state_dict().items()}
    train(model, opt, batch, STEPS if phase == "frozen" else 8)
    assert sparsifier.phase == phase
    if way == "overwrite":
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            model.double().float()
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)
        with torch.no_grad():
            model[0].weight.fill_(0.5)
    else:
        model.load_state_dict(early, assign=True)
    used = model[0] if way == "module" else model
    kind, words = (UserWarning, "left: 0.weight") if phase == "frozen" else (setpoint.UnfinishedRunWarning, "8 of 20")
    with pytest.warns(kind, match=words):
        setpoint.save(used, tmp_path / "a.safetensors")
    if phase == "frozen":
        with pytest.warns(UserWarning, match="exported, but the model is not what the run left"):
            setpoint.export(used, tmp_path / "a.pt2", batch(0)[0])
    else:
        with pytest.raises(ValueError, match="sparsify phase"):
            setpoint.export(used, tmp_path / "a.pt2", batch(0)[0])


def test_a_model_that_shares_nothing_with_a_run_is_used_in_silence(tmp_path):
    model, opt, batch, _sparsifier = run()
    train(model, opt, batch, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        setpoint.save(copy.deepcopy(model), tmp_path / "a.safetensors")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [0, 8, STEPS])
def test_parameters_may_be_swapped_in_their_places(method, at):
    """As modules convert and load theirs where torch is told to."""
    straight, opt, batch, _ = run(method)
    train(straight, opt, batch, STEPS + 2)
    model, opt, batch, sparsifier = run(method)
    train(model, opt, batch, at)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.load_state_dict(copy.deepcopy(model.state_dict()))
        model.double().float()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    train(model, opt, batch, STEPS + 2 - at, start=at)
    assert sparsifier.exact
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), straight.state_dict().values()))


def test_what_is_no_model_is_refused_in_a_sentence(tmp_path):
    model, opt, batch, sparsifier = run()
    train(model, opt, batch, STEPS)
    setpoint.save(model, tmp_path / "a.safetensors")
    state = model.state_dict()
    for call in (
        lambda: sparsifier.apply(state),
        lambda: sparsifier.follow(state),
        lambda: setpoint.save(sparsifier, tmp_path / "b.safetensors"),
        lambda: setpoint.compact(state, batch(0)[0]),
        lambda: setpoint.load(tmp_path / "a.safetensors", "x"),
    ):
        with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
            call()


def test_a_run_after_one_that_was_let_go_begins_in_silence():
    model, opt, batch, sparsifier = run()
    train(model, opt, batch, STEPS)
    sparsifier.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        setpoint.Sparsifier(model, opt, method="magnitude", target=0.9, steps=STEPS)
