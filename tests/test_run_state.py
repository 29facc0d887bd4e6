"""The run's state is found again on every road that checkpoints take, or its absence is said."""

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

import setpoint
from setpoint.run_state import KEY, decode, encode

from nets import build, train

STEPS = 20


def run(method="magnitude", seed=0, steps=STEPS, optimizer="adamw", target=0.8, **options):
    model, opt, batch = build("mlp", optimizer, seed)
    return model, opt, batch, setpoint.Sparsifier(model, opt, method=method, target=target, steps=steps, **options)


def same(model: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


def by_file(model, opt):
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": opt.state_dict()}, buffer)
    return io.BytesIO(buffer.getvalue())


def load_file(file, model, opt):
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    opt.load_state_dict(state["optimizer"])


def save_dcp(model, opt, path, options):
    model_state, optimizer_state = get_state_dict(model, opt, options=options)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=path)


def load_dcp(model, opt, path, options):
    model_state, optimizer_state = get_state_dict(model, opt, options=options)
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=path)
    set_state_dict(model, opt, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=options)


DCP = {
    "plain": StateDictOptions(),
    "flattened": StateDictOptions(flatten_optimizer_state_dict=True),
    "full": StateDictOptions(full_state_dict=True, cpu_offload=True),
}


@pytest.mark.parametrize("method", ["l0", "rigl"])
@pytest.mark.parametrize("way", DCP)
@pytest.mark.parametrize("cut", [12, 18])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:torch.distributed")
def test_the_helper_of_distributed_checkpoints_carries_the_run(method, way, cut, tmp_path):
    model, opt, batch, sparsifier = run(method)
    train(model, opt, batch, cut)
    before = sparsifier.step
    save_dcp(model, opt, tmp_path, DCP[way])
    assert sparsifier.step == before == cut
    train(model, opt, batch, STEPS - cut, start=cut)

    again, opt2, _, resumed = run(method, seed=1)
    load_dcp(again, opt2, tmp_path, DCP[way])
    assert resumed.step == cut
    train(again, opt2, batch, STEPS - cut, start=cut)
    assert resumed.exact
    assert same(model, again)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:torch.distributed")
@pytest.mark.parametrize(("saved", "live"), [(18, 3), (3, 18), (12, 12)])
def test_plain_distributed_loads_find_the_same_keys_whatever_the_progress(saved, live, tmp_path):
    model, opt, batch, _ = run()
    train(model, opt, batch, saved)
    dcp.save({"model": model.state_dict(), "optimizer": opt.state_dict()}, checkpoint_id=tmp_path)
    again, opt2, _, resumed = run(seed=1)
    train(again, opt2, batch, live)
    state = {"model": again.state_dict(), "optimizer": opt2.state_dict()}
    dcp.load(state, checkpoint_id=tmp_path)
    again.load_state_dict(state["model"])
    opt2.load_state_dict(state["optimizer"])
    assert resumed.step == saved
    train(model, opt, batch, STEPS - saved, start=saved)
    train(again, opt2, batch, STEPS - saved, start=saved)
    assert same(model, again)


@pytest.mark.parametrize("method", ["magnitude", "l0", "set", "rigl"])
@pytest.mark.parametrize("cut", [12, 18])
@pytest.mark.parametrize("order", ["optimizer first", "model first", "all before", "model before", "optimizer before"])
def test_states_are_found_whatever_is_loaded_and_built_first(method, cut, order):
    model, opt, batch, _ = run(method)
    train(model, opt, batch, cut)
    state = torch.load(by_file(model, opt), weights_only=True)
    train(model, opt, batch, STEPS - cut, start=cut)

    again, opt2, _ = build("mlp", "adamw", 1)
    early = {"all before": "mo", "model before": "m", "optimizer before": "o"}.get(order, "")
    late = {"optimizer first": "om", "model first": "mo", "model before": "o", "optimizer before": "m"}.get(order, "")

    def load(what):
        for kind in what:
            (again if kind == "m" else opt2).load_state_dict(state["model" if kind == "m" else "optimizer"])

    load(early)
    resumed = setpoint.Sparsifier(again, opt2, method=method, target=0.8, steps=STEPS)
    load(late)
    assert resumed.step == cut
    train(again, opt2, batch, STEPS - cut, start=cut)
    assert resumed.exact
    assert same(model, again)


@pytest.mark.parametrize("method", ["set", "rigl", "static"])
@pytest.mark.parametrize("late", ["mo", "o"])
def test_an_optimizer_that_loads_its_own_state_once_loses_nothing(method, late):
    """As wrappers do that move their optimizer's state to a device."""
    model, opt, batch, _ = run(method)
    train(model, opt, batch, 12)
    state = torch.load(by_file(model, opt), weights_only=True)
    again, opt2, _ = build("mlp", "adamw", 1)
    if late == "o":
        again.load_state_dict(state["model"])
    resumed = setpoint.Sparsifier(again, opt2, method=method, target=0.8, steps=STEPS)
    opt2.load_state_dict(opt2.state_dict())
    opt2.load_state_dict(copy.deepcopy(opt2.state_dict()))
    if late == "mo":
        again.load_state_dict(state["model"])
        opt2.load_state_dict(opt2.state_dict())
    opt2.load_state_dict(state["optimizer"])
    assert same(model, again)
    assert resumed.step == 12


@pytest.mark.parametrize("method", ["set", "rigl", "static"])
@pytest.mark.parametrize("floor", [0, 1])
def test_weights_that_never_moved_are_not_taken_for_those_before_the_draw(method, floor):
    """As in a warm-up whose learning rate begins at zero."""

    def built(seed):
        model, opt, batch = build("mlp", "sgd", seed)
        opt.param_groups[0]["lr"] = 0.0
        options = {"schedule": setpoint.Schedule("constant", begin=0, end=0.9, interval=1), "floor": floor}
        return model, opt, batch, setpoint.Sparsifier(model, opt, method=method, target=0.8, steps=STEPS, **options)

    model, opt, batch, _ = built(0)
    train(model, opt, batch, 3)
    state = torch.load(by_file(model, opt), weights_only=True)
    again, opt2, _, resumed = built(0)
    again.load_state_dict(state["model"])
    opt2.load_state_dict(state["optimizer"])
    assert same(model, again)
    assert resumed.report().differences == {}


def test_a_step_that_only_makes_the_optimizers_state_is_none():
    model, opt, batch, sparsifier = run("rigl")
    before = copy.deepcopy(model.state_dict())
    get_state_dict(model, opt)
    assert sparsifier.step == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    train(model, opt, batch, 3)
    assert sparsifier.step == 3


def test_a_step_at_a_learning_rate_of_zero_is_one_where_there_are_gradients():
    model, opt, batch, sparsifier = run(optimizer="sgd")
    opt.param_groups[0]["lr"] = 0.0
    train(model, opt, batch, 2)
    assert sparsifier.step == 2


def test_the_state_of_other_layers_is_refused_with_both_sides_named():
    model, opt, batch, _ = run(exclude="0.weight")
    train(model, opt, batch, 5)
    state = opt.state_dict()
    _, opt2, _, other = run(include="0.weight")
    before = copy.deepcopy(opt2.state_dict()["state"])
    with pytest.raises(ValueError, match=r"other layers: 2\.weight, 4\.weight there, 0\.weight here"):
        opt2.load_state_dict(state)
    assert other.step == 0
    assert opt2.state_dict()["state"] == before
    _, opt3, _, third = run(exclude="4.weight")
    with pytest.raises(ValueError, match=r"layers was .*4\.weight.* there and is .*0\.weight.* here"):
        opt3.load_state_dict(state)
    assert third.step == 0


def test_a_state_that_waits_in_the_optimizer_is_refused_by_another_run():
    model, opt, batch, _ = run(exclude="0.weight")
    train(model, opt, batch, 5)
    again, opt2, _ = build("mlp", "adamw", 1)
    opt2.load_state_dict(opt.state_dict())
    with pytest.raises(ValueError, match="param_groups"):
        setpoint.Sparsifier(again, opt2, include="0.weight", target=0.8, steps=STEPS)
    with pytest.raises(ValueError, match="target was"):
        setpoint.Sparsifier(again, opt2, exclude="0.weight", method="magnitude", target=0.7, steps=STEPS)
    resumed = setpoint.Sparsifier(again, opt2, exclude="0.weight", method="magnitude", target=0.8, steps=STEPS)
    assert resumed.step == 5


def test_a_load_that_the_optimizer_refuses_changes_nothing():
    model, opt, batch, _ = run()
    train(model, opt, batch, 18)
    state = opt.state_dict()
    state["param_groups"][0]["params"] = state["param_groups"][0]["params"][:-1]
    again, opt2, _, other = run(seed=1)
    before = copy.deepcopy(again.state_dict())
    with pytest.raises(ValueError, match="doesn't match the size"):
        opt2.load_state_dict(state)
    assert (other.step, other.phase) == (0, "dense")
    assert all(torch.equal(before[name], tensor) for name, tensor in again.state_dict().items())
    train(again, opt2, batch, STEPS)
    assert other.exact


def test_an_optimizer_that_has_taken_steps_without_a_run_is_said_aloud():
    model, opt, batch = build("mlp", "adamw")
    train(model, opt, batch, 3)
    state = copy.deepcopy(opt.state_dict())
    _again, opt2, _, sparsifier = run(seed=1)
    with pytest.warns(UserWarning, match="after 3 steps holds no state of a setpoint run.*at step 0 of 20") as seen:
        opt2.load_state_dict(state)
    assert seen[0].filename == __file__
    assert sparsifier.step == 0


def test_a_sparse_model_whose_runs_state_was_dropped_is_said_aloud():
    model, opt, batch, _ = run()
    train(model, opt, batch, STEPS)
    state = opt.state_dict()
    state["param_groups"][0].pop(KEY)
    again, opt2, _ = build("mlp", "adamw", 1)
    again.load_state_dict(model.state_dict())
    opt2.load_state_dict(state)
    with pytest.warns(UserWarning, match="begins at step 0, though the model has zeros already"):
        setpoint.Sparsifier(again, opt2, method="magnitude", target=0.8, steps=STEPS)


def test_dense_training_before_a_run_is_nothing_to_warn_of():
    model, opt, batch = build("mlp", "adamw")
    train(model, opt, batch, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        setpoint.Sparsifier(model, opt, target=0.8, steps=STEPS)


@pytest.mark.parametrize("position", [0, 13, 14, 40, -1])
def test_a_damaged_state_is_refused(position):
    data = bytearray(encode([{"asked": {"layers": {}}, "step": 3}]))
    assert decode(bytes(data))[0]["step"] == 3
    data[position] ^= 1
    _model, opt, _batch, sparsifier = run()
    state = opt.state_dict()
    state["param_groups"][0][KEY] = bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        opt.load_state_dict(state)
    assert sparsifier.step == 0


@pytest.mark.parametrize("method", ["magnitude", "l0", "rigl"])
@pytest.mark.parametrize("cut", [12, 18])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_a_copy_of_a_run_goes_on_by_itself(method, cut, order):
    things = run(method)
    model, opt, sparsifier = things[0], things[1], things[3]
    batch = things[2]
    train(model, opt, batch, cut)
    kept = copy.deepcopy(model.state_dict())
    originals = (model, opt, sparsifier)
    copies = dict(zip(order, copy.deepcopy(tuple(originals[i] for i in order))))
    model2, opt2, second = copies[0], copies[1], copies[2]
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())
    assert second.step == cut
    train(model2, opt2, batch, STEPS - cut, start=cut)
    assert second.exact
    assert sparsifier.step == cut
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())
    train(model, opt, batch, STEPS - cut, start=cut)
    assert same(model, model2)


def test_a_copy_of_a_model_that_holds_its_run_has_none():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.opt, _ = build("mlp")
            self.sparsifier = setpoint.Sparsifier(self, self.opt, target=0.8, steps=STEPS)

    module = Module()
    del module.opt
    copied = copy.deepcopy(module)
    with pytest.raises(AttributeError, match="stays with the original"):
        copied.sparsifier.report()
    with pytest.raises(TypeError, match=r"not pickled.*optimizer\.state_dict"):
        pickle.dumps(module.sparsifier)


def test_a_pickled_optimizer_carries_the_run():
    model, opt, batch, _ = run()
    train(model, opt, batch, 12)
    again, opt2 = pickle.loads(pickle.dumps((model, opt)))
    resumed = setpoint.Sparsifier(again, opt2, method="magnitude", target=0.8, steps=STEPS)
    assert resumed.step == 12


def test_two_runs_on_one_optimizer_each_find_their_own_state():
    def built(seed):
        model, opt, batch = build("mlp", "adamw", seed)
        first = setpoint.Sparsifier(model, opt, target=0.7, steps=STEPS, include="0.weight")
        train(model, opt, batch, 2)
        return model, opt, batch, first

    model, opt, batch, _ = built(0)
    setpoint.Sparsifier(model, opt, target=0.4, steps=STEPS, exclude="0.weight", method="magnitude")
    train(model, opt, batch, 10, start=2)
    state = torch.load(by_file(model, opt), weights_only=True)

    again, opt2, _, first = built(1)
    second = setpoint.Sparsifier(again, opt2, target=0.4, steps=STEPS, exclude="0.weight", method="magnitude")
    opt2.load_state_dict(state["optimizer"])
    assert (first.step, second.step) == (12, 10)

    again, opt2, _, first = built(1)
    opt2.load_state_dict(state["optimizer"])
    second = setpoint.Sparsifier(again, opt2, target=0.4, steps=STEPS, exclude="0.weight", method="magnitude")
    assert (first.step, second.step) == (12, 10)


def test_a_frozen_run_may_be_resumed_for_more_steps_and_an_unfinished_one_with_the_same():
    for cut in (6, 18):
        model, opt, batch, _ = run()
        train(model, opt, batch, cut)
        state = torch.load(by_file(model, opt), weights_only=True)
        again, opt2, _, longer = run(seed=1, steps=40)
        again.load_state_dict(state["model"])
        if cut == 6:
            with pytest.raises(ValueError, match=r"schedule was .*20.* there and is .*40.* here; resume with the same"):
                opt2.load_state_dict(state["optimizer"])
            continue
        opt2.load_state_dict(state["optimizer"])
        assert longer.phase == "frozen"
        train(again, opt2, batch, 22, start=18)
        assert longer.exact
        assert longer.report().differences == {}


def test_an_end_to_a_run_takes_its_state_off_the_optimizer():
    model, opt, _batch, sparsifier = run()
    sparsifier.remove()
    assert KEY not in opt.param_groups[0]
    assert KEY not in opt.state_dict()["param_groups"][0]
    setpoint.Sparsifier(model, opt, target=0.5, steps=STEPS)


def weights(like: torch.Tensor | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return 0.5 + torch.rand(18, 20, generator=generator) if like is None else like.clone()


def other_in_one_place() -> torch.Tensor:
    changed = weights()
    changed[9, 10] += 1e-3
    return changed


GIVEN = [setpoint.methods.GroupSparseEnvelope, setpoint.methods.GroupedSparseProjection]


@pytest.mark.parametrize("method", GIVEN)
def test_weights_that_were_given_are_compared_by_their_numbers(method):
    _, opt, _, _ = run(method(weights={"0.weight": weights()}))
    for same_numbers in (weights(), weights().double(), weights().t().contiguous().t()):
        _, opt2, _, _ = run(method(weights={"0.weight": same_numbers}))
        opt2.load_state_dict(opt.state_dict())
    for others in ({"0.weight": other_in_one_place()}, {"2.weight": torch.ones(())}, None):
        _, opt2, _, other = run(method(weights=others))
        with pytest.raises(ValueError, match=r"of another run: method was \{'weights': .*0\.weight.* there and is"):
            opt2.load_state_dict(opt.state_dict())
        assert other.step == 0


@pytest.mark.parametrize("method", GIVEN)
def test_how_tensors_are_printed_does_not_matter(method):
    _, opt, _, _ = run(method(weights={"0.weight": weights()}))
    torch.set_printoptions(precision=2)
    try:
        _, opt2, _, _ = run(method(weights={"0.weight": weights()}))
        opt2.load_state_dict(opt.state_dict())
    finally:
        torch.set_printoptions(profile="default")


@pytest.mark.parametrize("taken", [0, 6, STEPS])
@pytest.mark.parametrize(
    ("there", "here", "words"),
    [
        ({}, {"floor": 40}, "floor was 1 there and is 40 here"),
        ({"floor": 40}, {}, "floor was 40 there and is 1 here"),
        ({"floor": 0}, {"floor": 1}, "floor was 0 there and is 1 here"),
        ({}, {"target": 0.7}, "target was .*0.8.* there and is .*0.7.* here"),
        ({}, {"scope": "uniform"}, "scope was 'global' there and is 'uniform' here"),
        ({}, {"unit": (1, 1)}, "unit was 'weight' there and is '1x1' here"),
        (
            {"scope": {"0.*": 0.5, "*": 0.8}, "target": None},
            {"scope": {"*": 0.8, "0.*": 0.5}, "target": None},
            r"scope was \[\['0",
        ),
        (
            {"method": setpoint.methods.GroupedSparseProjection()},
            {"method": setpoint.methods.GroupedSparseProjection(vectors="row")},
            r"method was \{'vectors': 'layer'\} there and is \{'vectors': 'row'\} here",
        ),
    ],
)
def test_the_state_of_a_run_that_was_told_something_else_is_refused(there, here, words, taken):
    model, opt, batch, _ = run(**there)
    train(model, opt, batch, taken)
    _, opt2, _, other = run(seed=1, **here)
    with pytest.raises(ValueError, match=words):
        opt2.load_state_dict(opt.state_dict())
    assert other.step == 0
    _, opt3, _, resumed = run(seed=1, **there)
    opt3.load_state_dict(opt.state_dict())
    assert resumed.step == taken


def test_other_example_inputs_by_which_other_units_cost_more_are_refused():
    def built(size, count):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.Flatten(2), nn.AdaptiveAvgPool1d(16), nn.Flatten(), nn.Linear(96, 4)
        )
        opt, inputs = torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(count, 3, size, size)
        target = setpoint.Target(flops=0.5)
        return setpoint.Sparsifier(model, opt, target=target, method="magnitude", steps=STEPS, example_inputs=inputs)

    state = built(8, 1).state_dict()
    built(8, 3).load_state_dict(state)
    with pytest.raises(ValueError, match=r"costs was \{'0\.weight'"):
        built(12, 1).load_state_dict(state)


def damaged(key, value):
    return lambda state: state | {key: value}


BITS = torch.zeros(1, dtype=torch.uint8)
DAMAGED = {
    "a negative step": (damaged("step", -4), r"state\['step'\]=-4 must be a whole number >= 0"),
    "a step in words": (damaged("step", "x"), r"state\['step'\]='x' must be a whole number"),
    "half a step": (damaged("step", 2.5), r"state\['step'\]=2.5 must be"),
    "no step": (damaged("step", None), r"state\['step'\]=None must be"),
    "a step that is not a number": (damaged("step", float("nan")), r"state\['step'\]=nan must be"),
    "frozen before it began": (damaged("frozen_at", -1), r"state\['frozen_at'\]=-1 must be"),
    "frozen later": (damaged("frozen_at", 10**6), "'frozen_at' must be at most the step"),
    "frozen in words": (damaged("frozen", "no"), "'frozen' must be True or False"),
    "no memories": (damaged("memories", []), r"'memories' must be .* 1 budget"),
    "other memories": (damaged("memories", [3]), "'memories' must be"),
    "another history": (damaged("history", 3), "'history' must be"),
    "norms that are not there": (damaged("norms", {"0.weight": "9"}), "'norms' must be"),
    "pruned of others": (damaged("pruned", {"9.weight": BITS}), "'pruned' must be"),
    "pruned too short": (damaged("pruned", {"0.weight": BITS}), "'pruned' must be"),
    "pruned of nothing": (damaged("pruned", None), "'pruned' must be"),
    "kept of one layer": (damaged("kept", [BITS]), r"'kept' must be .* 3 layer"),
    "kept too short": (damaged("kept", [BITS] * 3), "'kept' must be"),
    "frozen without a support": (damaged("kept", []), "'kept' must be"),
    "numbers beyond the units": (damaged("empty", [torch.tensor([10**6])] * 3), "'empty' must be"),
    "numbers that are none": (damaged("empty", [torch.tensor([0.5])] * 3), "'empty' must be"),
    "asked in words": (damaged("asked", "all"), "'asked' must be"),
    "asked of no layers": (damaged("asked", {}), "'asked' must be"),
    "nothing": (lambda state: {}, "no state of a run, .*: asked, step, .* is missing"),
    "without a step": (lambda state: {k: v for k, v in state.items() if k != "step"}, ": step is missing"),
    "None": (lambda state: None, r"sparsifier\.state_dict\(\) returns, a dict, not NoneType"),
    "a list": (lambda state: [state], "a dict, not list"),
}


@pytest.mark.parametrize("taken", [4, 8, STEPS])
@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_no_state_is_refused_in_a_sentence_and_changes_nothing(what, taken):
    model, opt, batch, sparsifier = run()
    train(model, opt, batch, STEPS + 1)
    damage, words = DAMAGED[what]
    state = damage(sparsifier.state_dict())
    again, opt2, batch, other = run(seed=1)
    train(again, opt2, batch, taken)
    before, weights_before = encode([other.state_dict()]), copy.deepcopy(again.state_dict())
    with pytest.raises((TypeError, ValueError), match=words):
        other.load_state_dict(state)
    assert encode([other.state_dict()]) == before
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in weights_before.items())
    train(again, opt2, batch, STEPS - taken, start=taken)
    assert other.exact


@pytest.mark.parametrize("method", ["magnitude", "l0", "rigl", "hoyer"])
@pytest.mark.parametrize("unit", ["weight", "row"])
@pytest.mark.parametrize("taken", [0, 1, 8, STEPS, STEPS + 2])
def test_every_state_of_a_run_has_the_form_of_one(method, unit, taken):
    model, opt, batch, sparsifier = run(method, unit=unit, target=0.5)
    train(model, opt, batch, taken)
    _, _, _, other = run(method, unit=unit, target=0.5, seed=1)
    other.load_state_dict(sparsifier.state_dict())
    assert other.step == taken
