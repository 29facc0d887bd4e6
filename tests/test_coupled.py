"""Units that cross layers: every method meets the target exactly, and the smaller model computes the same."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import setpoint
from setpoint.budget import bytes_of_widths, count_flops, flops_of_widths, params_of_widths
from setpoint.recipes.models import build_model
from setpoint.wiring import derive
from test_contract import METHODS

from nets import OPTIMIZERS, train

STEPS = 12


class Attention(nn.Module):
    """Two heads and a hidden layer, without norms."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.o(mixed)
        return self.head((x + self.down(torch.relu(self.up(x)))).mean(1))


NETS = {
    "lenet5": (lambda: build_model("lenet5", shape=(1, 28, 28), classes=4, width=0.3), (1, 28, 28)),
    "resnet20": (lambda: build_model("resnet20", shape=(3, 16, 16), classes=4, width=0.25), (3, 16, 16)),
    "attention": (Attention, (5, 16)),
}
CASES = [("lenet5", "channel"), ("lenet5", "neuron"), ("resnet20", "channel"), ("attention", "neuron")]


def build(net, optimizer="sgd"):
    torch.manual_seed(0)
    factory, shape = NETS[net]
    model = factory()

    def batch(step):
        generator = torch.Generator().manual_seed(step)
        return torch.randn(6, *shape, generator=generator), torch.randint(4, (6,), generator=generator)

    return model, OPTIMIZERS[optimizer](model.parameters()), batch


def held(model):
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


def entries(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("net", "unit"), CASES)
@pytest.mark.parametrize("method", METHODS)
def test_parameters_of_the_smaller_model_meet_the_target(method, net, unit, optimizer):
    model, opt, batch = build(net, optimizer)
    dense = entries(model)
    sparsifier = setpoint.Sparsifier(
        model, opt, method=method, target=0.3, unit=unit, steps=STEPS, example_inputs=batch(0)[0]
    )
    train(model, opt, batch, STEPS)
    report = sparsifier.report()
    assert report.exact
    small = setpoint.compact(sparsifier, example_inputs=batch(0)[0])
    assert entries(small) <= 0.7 * dense
    # One more unit of any group would break it: counted on real models.
    kept = sparsifier.kept_units()
    for layer in sparsifier._layers:
        if len(kept[layer.name]) < layer.counts[0]:
            gone = next(i for i in range(layer.counts[0]) if i not in kept[layer.name].tolist())
            larger = copy.deepcopy(model)
            sparsifier.wiring.resize(larger, {**kept, layer.name: torch.cat([kept[layer.name], torch.tensor([gone])])})
            assert entries(larger) > 0.7 * dense
    assert report.budgets[0].kept == entries(small)
    # It trains on, in ordinary modules.
    again = torch.optim.SGD(small.parameters(), lr=0.01)
    train(small, again, batch, 2)
    assert not any("setpoint" in type(m).__module__ for m in small.modules() if "recipes" not in type(m).__module__)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", [setpoint.Target(params=2000), setpoint.Target(units=0.5), 0.5])
def test_targets(method, target):
    model, opt, batch = build("resnet20")
    sparsifier = setpoint.Sparsifier(
        model, opt, method=method, target=target, unit="channel", steps=STEPS, example_inputs=batch(0)[0]
    )
    units = sum(layer.counts[0] for layer in sparsifier._layers)
    dense = entries(model)
    train(model, opt, batch, STEPS)
    small = setpoint.compact(sparsifier, batch(0)[0])
    if isinstance(target, setpoint.Target) and target.units:
        assert sum(len(k) for k in sparsifier.kept_units().values()) == units // 2
    else:
        wanted = 2000 if isinstance(target, setpoint.Target) else 0.5 * dense
        assert 0.8 * wanted < entries(small) <= wanted
    assert sparsifier.report().exact


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("amount", [{"params": 0.6}, {"flops": 0.6}, {"units": 0.6}])
def test_widths_in_multiples(method, amount):
    model, opt, batch = build("lenet5")
    target = setpoint.Target(**amount, multiple_of=4)
    x = batch(0)[0]
    sparsifier = setpoint.Sparsifier(
        model, opt, method=method, target=target, unit="channel", steps=STEPS, example_inputs=x
    )
    train(model, opt, batch, STEPS)
    assert sparsifier.report().exact
    sizes = {layer.name: layer.counts[0] for layer in sparsifier._layers}
    widths = {name: len(kept) for name, kept in sparsifier.kept_units().items()}
    assert all(n % 4 == 0 or n == sizes[name] for name, n in widths.items())
    assert widths != sizes
    setpoint.compact(sparsifier, x)


def real_flops(model, x):
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).to("meta").eval()(x.to("meta"))
    return counter.get_total_flops()


@pytest.mark.parametrize(("net", "unit"), [*CASES, ("attention", "head")])
def test_flops_are_those_of_the_counter_at_any_width(net, unit):
    model, _, batch = build(net)
    x = batch(0)[0]
    wiring = derive(model, x)
    groups = [group.name for group in wiring.groups]
    cost, params = flops_of_widths(model, wiring, groups, x), params_of_widths(model, wiring, groups)
    memory = bytes_of_widths(model, wiring, groups)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        widths = [int(torch.randint(1, wiring[g].size + 1, (1,), generator=generator)) for g in groups]
        small = copy.deepcopy(model)
        wiring.resize(small, {g: torch.arange(n) for g, n in zip(groups, widths)})
        assert cost(widths) == pytest.approx(real_flops(small, x), rel=1e-9)
        assert params(widths) == entries(small)
        assert memory(widths) == held(small)


@pytest.mark.parametrize(("net", "unit"), [c for c in CASES if c != ("lenet5", "neuron")] + [("attention", "head")])
@pytest.mark.filterwarnings("ignore:.*less than one")
@pytest.mark.parametrize("method", METHODS)
def test_flops_of_the_smaller_model_meet_the_target(method, net, unit):
    model, opt, batch = build(net)
    x = batch(0)[0]
    sparsifier = setpoint.Sparsifier(
        model, opt, method=method, target=setpoint.Target(flops=0.7), unit=unit, steps=STEPS, example_inputs=x
    )
    train(model, opt, batch, STEPS)
    report = sparsifier.report()
    small = setpoint.compact(sparsifier, x)
    assert report.exact
    assert report.budgets[0].kept == pytest.approx(real_flops(small, x), rel=1e-9)
    assert real_flops(small, x) <= 0.7 * real_flops(model, x)


@pytest.mark.parametrize("unit", ["channel", "weight"])
def test_bytes(unit):
    model, opt, batch = build("resnet20")
    x = batch(0)[0]
    sparsifier = setpoint.Sparsifier(
        model, opt, target=setpoint.Target(bytes=8000), unit=unit, steps=STEPS, example_inputs=x
    )
    train(model, opt, batch, STEPS)
    assert sparsifier.report().exact
    if unit == "channel":
        assert 7000 < held(setpoint.compact(sparsifier, x)) <= 8000
    else:
        assert sum(int(mask.sum()) for mask in sparsifier.masks.values()) == 2000


def test_flops_of_single_weights_are_counted_in_the_chosen_layers():
    model, opt, batch = build("lenet5")
    x = batch(0)[0]
    target = setpoint.Target(flops=0.4)
    sparsifier = setpoint.Sparsifier(model, opt, method="magnitude", target=target, steps=STEPS, example_inputs=x)
    train(model, opt, batch, STEPS)
    assert sparsifier.report().exact
    flops, _ = count_flops(model, x)
    left = sum(flops[name] * float((model.get_parameter(name) != 0).float().mean()) for name in sparsifier.masks)
    assert 0.399 < left / real_flops(model, x) <= 0.4 + 1e-9


@pytest.mark.parametrize("method", ["magnitude", "l0"])
@pytest.mark.parametrize("cut", [3, 5, 9])
def test_resume_is_bit_exact(method, cut):
    def fresh():
        model, opt, batch = build("resnet20")
        sparsifier = setpoint.Sparsifier(
            model, opt, method=method, target=0.4, unit="channel", steps=STEPS, example_inputs=batch(0)[0]
        )
        return model, opt, batch, sparsifier

    straight, opt, batch, _ = fresh()
    train(straight, opt, batch, STEPS)
    model, opt, batch, _ = fresh()
    train(model, opt, batch, cut)
    states = copy.deepcopy((model.state_dict(), opt.state_dict()))
    again, opt, batch, sparsifier = fresh()
    again.load_state_dict(states[0])
    opt.load_state_dict(states[1])
    train(again, opt, batch, STEPS - cut, start=cut)
    assert all(torch.equal(a, b) for a, b in zip(straight.state_dict().values(), again.state_dict().values()))
    setpoint.compact(sparsifier, batch(0)[0])


def test_whole_heads_go():
    model, opt, batch = build("attention")
    sparsifier = setpoint.Sparsifier(
        model, opt, target=setpoint.Target(units=2), unit="head", steps=STEPS, example_inputs=batch(0)[0]
    )
    train(model, opt, batch, STEPS)
    small = setpoint.compact(sparsifier, batch(0)[0])
    assert small.q.weight.shape == (8, 16)
    assert small.o.weight.shape == (16, 8)


def test_refusals():
    model, opt, batch = build("resnet20")
    with pytest.raises(ValueError, match="pass example_inputs="):
        setpoint.Sparsifier(model, opt, target=0.5, unit="channel", steps=STEPS)
    x = batch(0)[0]
    with pytest.raises(ValueError, match="scope='uniform' divides"):
        setpoint.Sparsifier(model, opt, target=0.5, unit="channel", scope="uniform", steps=STEPS, example_inputs=x)
    with pytest.raises(ValueError, match="params may stay, but at least"):
        setpoint.Sparsifier(model, opt, target=0.999, unit="channel", steps=STEPS, example_inputs=x)
    with pytest.raises(ValueError, match="there are no units of kind 'head'"):
        setpoint.Sparsifier(model, opt, target=0.5, unit="head", steps=STEPS, example_inputs=x)
    with pytest.raises(ValueError, match="matches no group"):
        setpoint.Sparsifier(model, opt, target=0.5, unit="channel", exclude="x*", steps=STEPS, example_inputs=x)
    sparsifier = setpoint.Sparsifier(model, opt, target=0.5, unit="channel", steps=STEPS, example_inputs=x)
    with pytest.raises(ValueError, match="dense phase"):
        setpoint.compact(sparsifier)
    sparsifier.remove()
    with pytest.raises(ValueError, match="multiple_of=8 rounds the widths"):
        setpoint.Sparsifier(model, opt, target=setpoint.Target(0.5, multiple_of=8), unit="filter", steps=STEPS)
    other = setpoint.Sparsifier(model, opt, target=0.5, unit="filter", steps=STEPS)
    with pytest.raises(ValueError, match="possible: unit='channel'"):
        setpoint.compact(other)
