"""Overlays on a model: parameters are themselves outside of forward passes, and copies and pickles are plain models."""

import copy
import inspect
import io
import pickle
import subprocess
import sys
import threading
import warnings
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import setpoint
from setpoint.gates import Gates
from setpoint.overlay import HELD
from setpoint.units import Layer, Layout, Part, partition, select

from nets import build, train

STEPS = 20
SCHEDULE = setpoint.Schedule(begin=3, end=10)


ALIVE: list = []


@pytest.fixture(autouse=True)
def _let_go():
    yield
    ALIVE.clear()


def gate(model, include=None, unit="weight", seed=0):
    """Gates with samples and medians at random, the one unlike the other, and hung on the model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    layers = select(model, optimizer, unit, include, None).layers
    gates = Gates(model, layers)
    gates.attach()
    generator = torch.Generator().manual_seed(seed)
    for i, layer in enumerate(layers):
        gates.put(i, *(0.1 + 0.8 * torch.rand(layer.counts, generator=generator) for _ in range(2)))
    ALIVE.append(gates)  # they are on the model for as long as somebody holds them
    return gates


def multiplied(model, gates, sampled):
    """A plain model with the gates multiplied in by hand."""
    gates_of = {i: by.sample if sampled else by.test for i, by in enumerate(gates._by_site[s[0]] for s in gates._sites)}
    factors = {layer.name: gates_of[i].reshape(layer.shape) for i, layer in enumerate(gates._layers)}
    return {n: p.detach() * factors.get(n, 1.0) for n, p in model.named_parameters()}


def running(net="convnet", taken=5, unit="filter", **options):
    """(model, optimizer, batch, sparsifier) of a run in its sparsify phase, whose medians have moved."""
    model, opt, batch = build(net)
    options = {"method": "l0", "target": 0.5, "steps": STEPS, "schedule": SCHEDULE} | options
    sparsifier = setpoint.Sparsifier(model, opt, unit=unit, **options)
    train(model, opt, batch, taken)
    if sparsifier.phase == "sparsify":
        (memory,) = sparsifier.state_dict()["memories"]
        memory["log_alpha"].copy_(torch.linspace(-3.0, 3.0, memory["log_alpha"].numel()))
        sparsifier._open(None)
    return model, opt, batch, sparsifier


def plain(model, like):
    """Whether every module is of the class that it would be of without a run, and holds what it would hold."""
    return all(
        type(one) is type(other) and vars(one).keys() == vars(other).keys() and not one._forward_hooks
        for one, other in zip(model.modules(), like.modules(), strict=True)
    )


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "pickle 2": lambda m: pickle.loads(pickle.dumps(m, protocol=2)),
    "torch.save": saved,
    "average": lambda m: torch.optim.swa_utils.AveragedModel(m).module,
}


@pytest.mark.parametrize("taken", [1, 5, 12])
@pytest.mark.parametrize("way", WAYS)
def test_a_copy_is_a_plain_model_that_computes_what_the_gated_one_does_in_evaluation(way, taken):
    model, opt, batch, _ = running(taken=taken)
    copied, inputs = WAYS[way](model), batch(0)[0]
    assert plain(copied, build("convnet")[0])
    want = model.eval()(inputs)
    assert torch.allclose(copied.eval()(inputs), want, atol=1e-6)
    assert copied.training is False
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in copied.parameters())
    assert torch.allclose(copied.train().norm(model.conv1(inputs)), copied.norm(model.conv1(inputs)))
    before = copy.deepcopy(copied.state_dict())
    train(model.train(), opt, batch, STEPS - taken, start=taken)
    assert all(torch.equal(v, copied.state_dict()[k]) for k, v in before.items()), "it is no part of the run"


@pytest.mark.parametrize("name", ["norm", "grouped", "fc"])
def test_so_is_the_copy_of_one_of_its_modules(name):
    model, _, _, _ = running()
    module = model.get_submodule(name).eval()
    inputs = {"norm": torch.randn(4, 8, 3, 3), "grouped": torch.randn(4, 8, 6, 6), "fc": torch.randn(4, 10)}[name]
    for way in (copy.copy, copy.deepcopy, WAYS["pickle"]):
        copied = way(module)
        assert type(copied) is type(build("convnet")[0].get_submodule(name))
        assert HELD not in vars(copied)
        assert torch.allclose(copied(inputs), module(inputs), atol=1e-6)
    assert type(module).__name__ == ("Linear" if name == "fc" else f"Gated{type(copied).__name__}")


def test_a_copy_changes_nothing_of_the_run():
    straight, opt, batch, _ = running()
    train(straight, opt, batch, STEPS - 5, start=5)
    model, opt, batch, sparsifier = running()
    for way in WAYS.values():
        way(model)
        way(model.norm) if way is not WAYS["average"] else None
    train(model, opt, batch, STEPS - 5, start=5)
    assert sparsifier.report().exact
    assert all(torch.equal(v, straight.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_pickle_is_read_where_this_library_is_not():
    for taken in (1, 5):
        model, _, batch, _ = running("mlp", taken, "row")
        inputs = batch(0)[0]
        buffer = io.BytesIO()
        torch.save({"model": model, "inputs": inputs, "want": model.eval()(inputs)}, buffer)
        assert b"setpoint" not in buffer.getvalue()
        code = (
            "import io, sys, torch; found = torch.load(io.BytesIO(sys.stdin.buffer.read()), weights_only=False);"
            "assert 'setpoint' not in sys.modules; assert type(found['model'][0]) is torch.nn.Linear;"
            "assert torch.allclose(found['model'](found['inputs']), found['want'], atol=1e-6)"
        )
        subprocess.run([sys.executable, "-c", code], input=buffer.getvalue(), check=True, env={"OMP_NUM_THREADS": "1"})


def test_state_dicts_hold_the_parameters_without_gates():
    model, opt, _, _ = running()
    parameters = [p for group in opt.param_groups for p in group["params"]]
    assert all(torch.equal(model.state_dict()[n], p) for (n, _), p in zip(model.named_parameters(), parameters))


TOGETHER = {name: WAYS[name] for name in ("deepcopy", "pickle", "pickle 2", "torch.save")}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("way", TOGETHER)
def test_what_is_copied_together_refers_to_the_same_parameters(way, order):
    model, opt, batch, _ = running("mlp", unit="row")
    before = copy.deepcopy(model.state_dict())
    again, opt2 = TOGETHER[way]((model, opt)[::order])[::order]
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    copied = [p for group in opt2.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(again.parameters(), copied, strict=True))
    assert torch.allclose(again.eval()(batch(0)[0]), model.eval()(batch(0)[0]), atol=1e-6)


@pytest.mark.parametrize("way", TOGETHER)
def test_a_run_goes_on_with_a_model_and_an_optimizer_that_were_copied_together(way):
    model, opt, batch, _ = running("mlp", unit="row")
    again, opt2 = TOGETHER[way]((model, opt))
    before = copy.deepcopy(again.state_dict())
    resumed = setpoint.Sparsifier(again, opt2, unit="row", method="l0", target=0.5, steps=STEPS, schedule=SCHEDULE)
    assert resumed.step == 5
    train(again.train(), opt2, batch, STEPS - 5, start=5)
    assert resumed.exact
    assert all(bool((v != before[k]).any()) for k, v in again.state_dict().items())


def test_a_pickle_that_shares_its_memory_leaves_the_weights_as_they_are():
    """As those do that torch.multiprocessing hands to another process."""
    strategy = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        model, _, batch, _ = running("mlp", unit="row")
        before = copy.deepcopy(model.state_dict())
        again = pickle.loads(ForkingPickler.dumps(model))
    finally:
        torch.multiprocessing.set_sharing_strategy(strategy)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert torch.allclose(again.eval()(batch(0)[0]), model.eval()(batch(0)[0]), atol=1e-6)


class OfItsOwn(nn.Linear):
    """Copied and pickled in its own way, and with a child that refers back to it."""

    __slots__ = ("note",)

    def __init__(self):
        super().__init__(4, 4)
        self.note, self.lock = "kept", threading.Lock()
        self.child = nn.ReLU()
        self.child.parent = [self]

    def __getstate__(self):
        return {k: v for k, v in super().__getstate__().items() if k != "lock"} | {"written": self.note}

    def __setstate__(self, state):
        self.note = state.pop("written")
        super().__setstate__(state)
        self.lock = threading.Lock()


class Constructed(nn.Linear):
    def __deepcopy__(self, memo):
        made = type(self)(self.in_features, self.out_features)
        memo[id(self)] = made
        made.load_state_dict(self.state_dict())
        return made

    def __copy__(self):
        return copy.deepcopy(self)


class Reduced(nn.Linear):
    def __reduce__(self):
        return type(self), (self.in_features, self.out_features), {"_parameters": self._parameters}


@pytest.mark.parametrize("factory", [OfItsOwn, lambda: Constructed(4, 4), lambda: Reduced(4, 4)])
def test_a_class_that_copies_or_pickles_in_its_own_way_goes_on_doing_so(factory):
    model, inputs = nn.Sequential(factory(), nn.ReLU()), torch.randn(3, 4)
    kind = type(model[0])
    gate(model)
    want = model.eval()(inputs)
    for way in (copy.deepcopy, WAYS["pickle"]):
        if kind is Constructed and way is not copy.deepcopy:
            continue
        copied = way(model)
        assert type(copied[0]) is kind
        assert HELD not in vars(copied[0])
        assert torch.allclose(copied(inputs), want, atol=1e-6)
        if kind is OfItsOwn:
            assert copied[0].note == "kept"
            assert copied[0].child.parent[0] is copied[0]
    assert type(copy.copy(model[0])) is kind


def test_in_the_dense_phase_a_model_is_watched_and_its_copies_are_not():
    model, opt, batch, _ = running(taken=1)
    for way in WAYS.values():
        copied = way(model)
        assert plain(copied, build("convnet")[0])
    train(model, opt, batch, 5, start=1)
    assert type(model.norm).__name__ == "GatedBatchNorm2d", "it is seen all the same which norm follows"


@pytest.mark.parametrize("taken", [1, 5])
def test_while_nothing_is_called_an_attribute_is_the_parameter(taken):
    model, opt, batch, _ = running("mlp", taken, "row")
    layer, (parameter, *_) = model[0], opt.param_groups[0]["params"]
    assert layer.weight is parameter
    assert isinstance(layer.weight, nn.Parameter)
    assert layer.weight.grad is parameter.grad
    assert layer.weight.is_leaf
    layer.weight.data.clamp_(-0.01, 0.01)
    assert float(parameter.detach().abs().max()) <= 0.01
    with torch.no_grad():
        layer.weight.copy_(torch.ones(18, 20))
        layer.weight.mul_(2.0)
    assert bool((parameter == 2).all())
    nn.init.zeros_(layer.weight)
    assert bool((parameter == 0).all())
    layer.reset_parameters()
    assert bool((parameter != 0).any())
    layer.weight.grad = torch.ones(18, 20)
    nn.utils.clip_grad_norm_([layer.weight], 1.0)
    assert float(parameter.grad.norm()) == pytest.approx(1.0, rel=1e-4)
    layer.weight.requires_grad_(False)
    assert not parameter.requires_grad
    model(batch(0)[0])
    assert layer.weight is parameter
    with pytest.raises(TypeError, match="cannot assign"):
        layer.weight = torch.ones(18, 20)


def test_a_parameter_that_is_set_anew_is_there_and_trains_on():
    model, opt, batch, _ = running("mlp", unit="row")
    layer, old = model[0], model[0].weight
    for new in (nn.Parameter(torch.randn(18, 20)), nn.Parameter(torch.randn(18, 21)[:, 1:])):
        layer.weight = new
        assert layer.weight is new
        assert dict(model.named_parameters())["0.weight"] is new
        model(batch(0)[0]).sum().backward()
        assert new.grad is not None
    layer.weight = nn.Parameter(torch.randn(18, 7))
    assert torch.allclose(layer(torch.ones(2, 7)), layer.weight.sum(1) + layer.bias, atol=1e-5), "other units: no gates"
    layer.weight = old
    train(model, opt, batch, STEPS, start=5)
    assert type(layer) is nn.Linear
    assert layer.weight is old


class Reading(nn.Module):
    """Reads what its child holds, in the forward pass and elsewhere."""

    def __init__(self):
        super().__init__()
        self.child = nn.Linear(4, 4, bias=False)

    def forward(self, x):
        return F.linear(x, self.child.weight)

    def encode(self, x):
        return self.child(x)

    def fails(self, x):
        raise KeyboardInterrupt

    def checkpointed(self, x):
        return checkpoint(lambda x: F.linear(x, self.child.weight).sin(), x, use_reentrant=self.reentrant)


class Twice(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(self.inner(x))


@pytest.mark.parametrize("training", [True, False])
def test_forward_passes_of_a_module_and_of_those_that_contain_it_see_the_gated_value(training):
    torch.manual_seed(0)
    model, x = Twice(Reading()).train(training), torch.randn(3, 4)
    gates = gate(model)
    (weight,) = multiplied(model, gates, training).values()
    inner = model.inner
    once = x @ weight.T
    for found in (inner(x), inner.forward(x), inner.encode(x), inner.child(x), inner.child.forward(x)):
        assert torch.allclose(found, once, atol=1e-6)
    assert torch.allclose(model(x), once @ weight.T, atol=1e-6)
    assert torch.allclose(model.forward(x), once @ weight.T, atol=1e-6)
    by_name = {"inner.child.weight": torch.ones(4, 4)}
    want = torch.func.functional_call(model, by_name, x)
    assert torch.allclose(want, x @ (weight / inner.child.weight).T @ (weight / inner.child.weight).T, atol=1e-4)


def test_a_pass_that_fails_ends():
    model = Twice(Reading())
    gate(model)
    parameter = model.inner.child.weight
    for error in (RuntimeError, KeyboardInterrupt):
        handle = model.inner.child.register_forward_pre_hook(lambda *_, error=error: (_ for _ in ()).throw(error()))
        with pytest.raises(error):
            model.inner.encode(torch.randn(3, 4))
        handle.remove()
    with pytest.raises(RuntimeError):
        model(torch.randn(3, 5))
    assert model.inner.child.weight is parameter


def test_a_pass_in_one_thread_is_none_in_another():
    model, seen = Twice(Reading()), []
    gate(model)
    parameter = model.inner.child.weight

    def look(*_):
        other = threading.Thread(target=lambda: seen.append(model.inner.child.weight))
        other.start()
        other.join()
        seen.append(model.inner.child.weight)

    model.inner.register_forward_pre_hook(look)
    model.inner(torch.randn(2, 4))
    assert seen[0] is parameter
    assert seen[1] is not parameter


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_is_checkpointed_is_called_again_with_its_gates(reentrant):
    torch.manual_seed(0)
    model, x = Reading(), torch.randn(3, 4, requires_grad=True)
    model.reentrant = reentrant
    gates = gate(model)
    (weight,) = multiplied(model, gates, True).values()
    model.forward = model.checkpointed
    model(x).sum().backward()
    found = x.grad.clone(), model.child.weight.grad.clone()
    by_hand = weight.clone().requires_grad_()
    x.grad = None
    F.linear(x, by_hand).sin().sum().backward()
    assert torch.allclose(found[0], x.grad, atol=1e-5)
    assert torch.allclose(found[1], by_hand.grad * weight / model.child.weight, atol=1e-4)


def test_replicas_of_data_parallel_are_gated():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 4), torch.randn(3, 4)
    gates = gate(model)
    replica = model._replicate_for_data_parallel()
    # As torch.nn.parallel.replicate does it.
    for name, parameter in model._parameters.items():
        setattr(replica, name, parameter * 1.0)
    weight = multiplied(model, gates, True)["weight"]
    results = []
    thread = threading.Thread(target=lambda: results.append(replica(x)))
    thread.start()
    thread.join()
    assert torch.allclose(results[0], F.linear(x, weight, model.bias), atol=1e-6)
    results[0].sum().backward()
    assert model.weight.grad is not None


class Registered(nn.Module):
    known: list = []  # noqa: RUF012

    def __init_subclass__(cls, *, needed, **_):
        Registered.known.append(cls)


class Registering(type):
    def __new__(mcs, name, bases, body, **words):
        if any(isinstance(base, Registering) for base in bases):
            raise TypeError(f"{name} must not be derived")
        return super().__new__(mcs, name, bases, body)


class Asking(Registered, needed=1):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x):
        return x @ self.weight


class Final(nn.Linear, metaclass=Registering):
    pass


def test_classes_that_mind_their_subclasses_are_not_told():
    model = nn.Sequential(Asking())
    gates = gate(model, include="0.weight")
    assert Registered.known == [Asking]
    (weight,) = multiplied(model, gates, True).values()
    assert torch.allclose(model(torch.eye(4)), weight)
    assert type(copy.deepcopy(model)[0]) is Asking
    gates.detach()
    assert type(model[0]) is Asking


def test_a_module_that_can_have_no_overlay_is_refused_by_name_and_one_around_it_does_not_matter():
    model = nn.Sequential(Final(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"'0.weight' cannot be gated: class Final .* must not be derived.*exclude="):
        setpoint.Sparsifier(model, optimizer, method="l0", target=0.5, steps=STEPS)
    assert type(model) is nn.Sequential
    outer = nn.Sequential(Final(4, 4), nn.Linear(4, 4))
    gate(outer, include="1.weight")
    assert type(outer[0]) is Final
    assert type(outer[1]).__name__ == "GatedLinear"


def test_torchscript_is_refused_by_name():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(torch.jit.script(nn.Linear(4, 4)), nn.Linear(4, 2))
    parameter = model[0].weight
    layer = Layer("0.weight", (Part("0.weight", parameter, partition("weight", Layout((4, 4)))),))
    with pytest.raises(ValueError, match=r"'0.weight' cannot be gated: .* TorchScript"):
        Gates(model, [layer])


def test_signatures_names_and_classes_are_as_before():
    model, _, _, _ = running()
    like = build("convnet")[0]
    assert inspect.signature(model.forward) == inspect.signature(like.forward)
    assert type(model).__name__ == type(like).__name__
    assert all(isinstance(a, type(b)) for a, b in zip(model.modules(), like.modules()))
    assert dir(model.fc) == dir(like.fc)
    assert [type(m).__module__ for m in model.modules()] == [type(m).__module__ for m in like.modules()]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.filterwarnings("error::UserWarning", "ignore::setpoint.UnfinishedRunWarning")
def test_exported_programs_are_gated(strict):
    torch.manual_seed(0)
    model, x = Twice(Reading()).eval(), torch.randn(3, 4)
    (weight,) = multiplied(model, gate(model), False).values()
    program = torch.export.export(model, (x,), strict=strict)
    assert torch.allclose(program.module()(x), x @ weight.T @ weight.T, atol=1e-6)


class Disabled(nn.Linear):
    @torch.compiler.disable
    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


def test_what_is_not_compiled_of_a_compiled_model_is_gated_as_well():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Disabled(4, 4)), torch.randn(3, 4)
    weights = multiplied(model, gate(model), True)
    torch._dynamo.reset()
    want = torch.func.functional_call(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), weights, x)
    assert torch.allclose(torch.compile(model, backend="eager")(x), want, atol=1e-6)


def test_a_compiled_model_has_no_breaks_and_is_not_compiled_at_every_step():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, opt, batch, _ = running("mlp", 4, "row")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for step in range(4, 9):
        train(compiled, opt, batch, 1, start=step)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_what_wraps_a_module_is_copied_as_what_it_is():
    torch._dynamo.reset()
    model, _, batch, _sparsifier = running("mlp", unit="row")
    inputs, compiled = batch(0)[0], torch.compile(model, backend="eager")
    want = model.eval()(inputs)
    for copied in (copy.deepcopy(compiled), copy.deepcopy(nn.Sequential(compiled)), saved(compiled)):
        assert torch.allclose(copied.eval()(inputs), want, atol=1e-6)
    assert type(copy.deepcopy(compiled)) is type(compiled)
    assert [type(m) for m in copy.deepcopy(compiled)._orig_mod] == [type(m) for m in build("mlp")[0]]


def test_a_part_that_is_compiled_by_itself_is_gated_and_copied():
    torch.manual_seed(0)
    torch._dynamo.reset()
    part = torch.compile(nn.Sequential(nn.Linear(20, 18), nn.ReLU()), backend="eager")
    model, (_, _, batch) = nn.Sequential(part, nn.Linear(18, 8)), build("mlp")
    kinds = [type(m) for m in model.modules()]
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    sparsifier = setpoint.Sparsifier(model, opt, method="l0", target=0.5, steps=STEPS, schedule=SCHEDULE)
    train(model, opt, batch, 6)
    copied, inputs = copy.deepcopy(model).eval(), batch(0)[0]
    assert [type(m) for m in copied.modules()] == kinds
    assert torch.allclose(copied(inputs), model.eval()(inputs), atol=1e-6)
    train(model.train(), opt, batch, STEPS, start=6)
    assert sparsifier.report().exact
    assert [type(m) for m in model.modules()] == kinds
