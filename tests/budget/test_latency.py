"""Latency of widths: on a machine whose clock is known, and on this one."""

import copy
import random
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import setpoint
from setpoint.budget import LatencyOfWidths, latency, tables
from setpoint.budget.operations import Size, operations_of
from setpoint.recipes.models import build_model
from setpoint.wiring import derive

from nets import train

STEPS = 12


class Clock(TorchDispatchMode):
    """A machine that takes a nanosecond for a floating-point operation and ten for an entry of any other result."""

    def __init__(self):
        super().__init__()
        self.ms = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.ms += 1e-6 * flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        elif not func.is_view:
            self.ms += 1e-5 * sum(t.numel() for t in _pytree.tree_leaves(out) if isinstance(t, Tensor))
        return out


def known_clock(works, device, **_):
    times = []
    for work in works:
        with Clock() as clock:
            work()
        times.append(clock.ms)
    return times


def read_off(monkeypatch, clock):
    for module in (latency, tables):
        monkeypatch.setattr(module, "medians", clock)


@pytest.fixture
def known_machine(monkeypatch):
    read_off(monkeypatch, known_clock)


@pytest.fixture
def noisy_machine(monkeypatch):
    noise = random.Random(0)

    def noisy_clock(works, device, **_):
        return [t * noise.uniform(0.9, 1.1) for t in known_clock(works, device)]

    read_off(monkeypatch, noisy_clock)


SHAPES = {"lenet5": (1, 28, 28), "resnet20": (3, 16, 16), "vgg16": (3, 32, 32)}


def net(name="resnet20", batch=4):
    torch.manual_seed(0)
    model = build_model(name, shape=SHAPES[name], classes=4, width=0.125 if name == "vgg16" else 0.5)
    x = torch.randn(batch, *SHAPES[name])
    wiring = derive(model, x)
    return model, x, wiring, [g.name for g in wiring.groups]


def random_widths(wiring, groups, count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield [int(torch.randint(1, wiring[g].size + 1, (1,), generator=generator)) for g in groups]


def shrunk(model, wiring, groups, widths):
    small = copy.deepcopy(model)
    wiring.resize(small, {g: torch.arange(n) for g, n in zip(groups, widths)})
    return small.eval()


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "vgg16"])
def test_sizes_of_operations_are_those_of_the_smaller_model(name):
    model, x, wiring, groups = net(name)
    operations = operations_of(model.eval(), wiring, groups, (x,))
    assert sum(bool(o.sizes) for o in operations) > 5
    for widths in random_widths(wiring, groups, 3):
        small = shrunk(model, wiring, groups, widths)
        by_name = dict(zip(groups, widths))
        real = operations_of(small, derive(small, x), [], (x,))
        assert [o.at({s: s.at(by_name) for s in o.sizes}).leaves for o in operations] == [r.leaves for r in real]


def test_made_tensors_lie_in_memory_as_the_real_ones():
    model, x, wiring, groups = net()
    model, x = model.to(memory_format=torch.channels_last).eval(), x.to(memory_format=torch.channels_last)
    operations = operations_of(model, wiring, groups, (x,))
    convolution = next(o for o in operations if "convolution" in str(o.function))
    made = convolution.at({s: s.at({g: wiring[g].size for g in groups}) for s in convolution.sizes}).leaves[:2]
    assert all(m.make(torch.device("cpu")).is_contiguous(memory_format=torch.channels_last) for m in made)
    assert [m.sizes for m in made] == [tuple(x.shape), tuple(model.conv1.weight.shape)]


def test_a_size_follows_several_groups():
    assert Size(3, (("a", 2), ("b", -1))).at({"a": 5, "b": 4}) == 9


def test_a_known_machine_is_predicted(known_machine):
    model, x, wiring, groups = net()
    predicted = LatencyOfWidths(model, wiring, groups, x)
    for widths in random_widths(wiring, groups, 6):
        small = shrunk(model, wiring, groups, widths)
        with torch.no_grad():
            (taken,) = known_clock([lambda small=small: small(x)], None)
        assert predicted(widths) == pytest.approx(taken, rel=0.02)


def test_a_unit_more_never_costs_less_on_this_machine():
    model, x, wiring, groups = net("lenet5")
    predicted = LatencyOfWidths(model, wiring, groups, x)
    full = [wiring[g].size for g in groups]
    assert predicted(full) > 0
    for widths in random_widths(wiring, groups, 10):
        for i, width in enumerate(widths):
            if width < full[i]:
                more = [*widths[:i], width + 1, *widths[i + 1 :]]
                assert predicted(more) >= predicted(widths)


def test_what_was_measured_is_taken_back():
    model, x, wiring, groups = net("lenet5")
    first, second = (LatencyOfWidths(model, wiring, groups, x) for _ in range(2))
    second.load_state_dict(first.state_dict())
    assert all(first(w) == second(w) for w in random_widths(wiring, groups, 5))


def run(target, method="magnitude", batch=4, steps=STEPS):
    model, x, _, _ = net(batch=batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparsifier = setpoint.Sparsifier(
        model, optimizer, method=method, target=target, unit="channel", steps=STEPS, example_inputs=x
    )

    train(model, optimizer, examples, steps)
    return model, optimizer, sparsifier, x


def examples(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(4, *SHAPES["resnet20"], generator=generator), torch.randint(4, (4,), generator=generator)


@pytest.mark.parametrize("method", ["magnitude", "gsp", "wgsef", "l0", "hoyer"])
@pytest.mark.parametrize("multiple", [1, 4])
def test_the_smaller_model_takes_as_long_as_asked_for(known_machine, method, multiple):
    model, x, _, _ = net()
    with torch.no_grad():
        (dense,) = known_clock([lambda: model.eval()(x)], None)
    target = setpoint.Target(latency_ms=0.6 * dense, multiple_of=multiple)
    *_, sparsifier, x = run(target, method)
    report = sparsifier.report()
    small = setpoint.compact(sparsifier, x).eval()
    with torch.no_grad():
        (taken,) = known_clock([lambda: small(x)], None)
    assert report.exact
    assert report.latency.requested == pytest.approx(0.6 * dense)
    assert report.latency.measured == pytest.approx(taken)
    assert taken <= 0.6 * dense
    assert multiple > 1 or taken > 0.55 * dense
    assert "ms asked for" in str(report)


def test_on_this_machine_the_report_says_what_was_measured():
    # A small part of the time: on a busy machine narrow models take nearly as long as wide ones.
    *_, sparsifier, _ = run(setpoint.Target(sparsity=0.1, cost="latency_ms", device="cpu"), batch=64)
    report = sparsifier.report()
    assert report.exact
    assert report.latency.measured > 0
    assert report.latency.predicted <= report.latency.requested == pytest.approx(0.9 * report.latency.dense)
    assert report.latency.device == "cpu"
    assert report.to_dict()["latency"]["requested"] == report.latency.requested


def test_a_machine_that_is_slower_than_its_parts_is_learned(monkeypatch):
    def slow(works, device, **told):
        # Whole models take longer than their parts, by the square of it: no factor and constant tell that.
        times = known_clock(works, device)
        return times if told.get("repeats") else [t + t * t / 20 for t in times]

    read_off(monkeypatch, slow)
    *_, sparsifier, _ = run(setpoint.Target(sparsity=0.7, cost="latency_ms"))
    found = sparsifier.report().latency
    assert 0.9 * found.requested < found.measured <= found.requested


@pytest.mark.parametrize("cut", [4, 9])
def test_a_resumed_run_trusts_what_the_first_one_measured(noisy_machine, cut):
    # The machine's noise differs from construction to construction, the choices do not.
    target = setpoint.Target(sparsity=0.3, cost="latency_ms")
    model, optimizer, first, _ = run(target, steps=cut)
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    again, optimizer, second, _ = run(target, steps=0)
    assert second.state_dict()["latency"] != first.state_dict()["latency"]
    again.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    assert second.state_dict()["latency"] == first.state_dict()["latency"]
    assert second._budgets[0].kept == first._budgets[0].kept
    assert second.report().latency == first.report().latency
    train(again, optimizer, examples, STEPS - cut, start=cut)
    assert second.report().exact


def test_refusals():
    model, x, _, _ = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def sparsifier(target, unit="channel", inputs=x):
        setpoint.Sparsifier(model, optimizer, target=target, unit=unit, steps=STEPS, example_inputs=inputs)

    with pytest.raises(ValueError, match="takes units along a width"):
        sparsifier(setpoint.Target(latency_ms=1), unit="filter")
    with pytest.raises(ValueError, match="takes units along a width"):
        sparsifier(setpoint.Target(latency_ms=1), unit="layer")
    with pytest.raises(ValueError, match="above 0"):
        setpoint.Target(latency_ms=0)
    with pytest.raises(ValueError, match="says where latency is measured"):
        setpoint.Target(flops=0.5, device="cpu")
    with pytest.raises(ValueError, match="which is not there"):
        sparsifier(setpoint.Target(latency_ms=1, device="cuda:77"))
    with pytest.raises(ValueError, match="latency_ms may stay, but at least"):
        sparsifier(setpoint.Target(latency_ms=1e-9))


class Changing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.first(x).relu()
        return self.second(x if self.first.out_features == 8 else x.sigmoid())


def test_a_model_that_works_otherwise_at_other_widths_is_refused():
    model, x = Changing(), torch.randn(2, 4)
    plain = nn.Sequential(OrderedDict(first=nn.Linear(4, 8), relu=nn.ReLU(), second=nn.Linear(8, 4)))
    wiring = derive(plain, x)
    with pytest.raises(ValueError, match="with a unit less in 'first' the model runs other operations"):
        LatencyOfWidths(model, wiring, [g.name for g in wiring.groups], x)
