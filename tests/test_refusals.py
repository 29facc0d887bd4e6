"""What cannot be done is refused before the run, by an error that says what was asked and what is possible."""

import pytest
import torch
from torch import nn

import setpoint
from setpoint.methods import ConstrainedL0, DeepHoyer, GroupedSparseProjection

from nets import build, mlp


def attempt(net="mlp", **options):
    model, opt, _ = build(net)
    return setpoint.Sparsifier(model, opt, **({"target": 0.5, "steps": 20} | options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": 0.0}, ["sparsity=0.0", "between 0 and 1"]),
        ({"target": 1.0}, ["sparsity=1.0", "between 0 and 1"]),
        ({"target": 90}, ["sparsity=90", "between 0 and 1", "did you mean 0.9?"]),
        ({"target": 1}, ["sparsity=1", "between 0 and 1"]),
        ({"target": True}, ["target=True", "a bool was given", "0.9"]),
        ({"target": "90%"}, ["target='90%'", "must be a number, such as 0.9"]),
        ({"target": setpoint.Target(params=2_000_000)}, ["params=2,000,000", "only 776"]),
        ({"target": setpoint.Target(units=777)}, ["units=777", "only 776"]),
        ({"target": setpoint.Target(bytes=3105)}, ["bytes=3,105", "only 3,104"]),
        ({"target": float("nan")}, ["sparsity=nan"]),
        ({"target": None}, ["no target", "target=0.9"]),
        ({"target": 0.5, "unit": "3:4"}, ["a sparsity of 0.5", "at most 0.23", "N:M"]),
        ({"unit": "filter"}, ["'filter'", "0.weight"]),
        ({"unit": "kernel"}, ["'kernel'", "0.weight"]),
        ({"unit": "channels"}, ["'channels'", "weight, row"]),
        ({"unit": (0, 4)}, ["(0, 4)", "at least 1"]),
        ({"unit": "4:2"}, ["4:2", "N < M"]),
        ({"include": "layer9.*"}, ["'layer9.*'", "0.weight, 2.weight, 4.weight"]),
        ({"include": ["0.weight", "*.bias"]}, ["'*.bias'", "name other parameters in full"]),
        ({"exclude": "nothing*"}, ["'nothing*'", "0.weight"]),
        ({"exclude": "*"}, ["no parameter"]),
        ({"include": "0.bias", "unit": "row"}, ["'0.bias'", "by name", "'row'"]),
        ({"scope": "layerwise"}, ["'layerwise'", "global, uniform, erk"]),
        ({"scope": {"conv*": 0.5}}, ["'conv*'", "0.weight"]),
        ({"scope": {"0.*": 1.5}}, ["sparsity=1.5"]),
        ({"scope": "globall"}, ["'globall'", "did you mean 'global'?"]),
        ({"scope": {"0.weigth": 0.5}}, ["'0.weigth'", "did you mean '0.weight'?"]),
        ({"scope": {3: 0.5}}, ["scope=", "3 is no glob"]),
        ({"scope": {"0.*": "x"}}, ["scope glob '0.*'", "sparsity='x'", "such as 0.9"]),
        ({"scope": {}}, ["scope={}", "global, uniform, erk"]),
        ({"scope": None}, ["scope=None", "global, uniform, erk"]),
        ({"scope": 3}, ["scope=3", "global, uniform, erk"]),
        ({"steps": 0}, ["steps=0"]),
        ({"steps": 1, "schedule": setpoint.Schedule(end=0.4)}, ["steps=1", "too few"]),
        ({"steps": 10.5}, ["steps=10.5"]),
        ({"steps": 10.0}, ["steps=10.0", "an int"]),
        ({"steps": True}, ["steps=True", "an int"]),
        ({"schedule": setpoint.Schedule(begin=0.9, end=0.5)}, ["begin=0.9 must come before end=0.5"]),
        ({"schedule": setpoint.Schedule(begin=15, end=0.5)}, ["steps=20", "begin=15", "end=0.5"]),
        ({"schedule": "lineer"}, ["'lineer'", "cubic, linear", "did you mean 'linear'?"]),
        ({"schedule": 3}, ["schedule=3", "setpoint.Schedule", "cubic, linear"]),
        ({"steps": 20, "schedule": setpoint.Schedule(begin=15, end=10)}, ["15", "10"]),
        ({"steps": 20, "schedule": setpoint.Schedule(end=30)}, ["30"]),
        ({"method": "magic"}, ["'magic'", "magnitude, gsp"]),
        ({"method": "magnitud"}, ["'magnitud'", "did you mean 'magnitude'?"]),
        ({"method": DeepHoyer}, ["DeepHoyer is a class", "DeepHoyer()"]),
        ({"method": 3}, ["method=3", "magnitude, gsp"]),
        ({"floor": -1}, ["floor=-1"]),
        ({"floor": 1.5}, ["floor=1.5", "an int"]),
        ({"floor": True}, ["floor=True", "an int"]),
        ({"floor": 0, "unit": "neuron", "example_inputs": torch.zeros(1, 20)}, ["floor=0", "floor=1 or more"]),
        (
            {"floor": 0, "unit": "neuron", "target": setpoint.Target(units=0.5), "example_inputs": torch.zeros(1, 20)},
            ["floor=0", "floor=1 or more"],
        ),
        ({"target": 0.99, "unit": "row"}, ["0.99", "at most"]),
        ({"target": 0.9, "unit": "row", "floor": 4}, ["at most", "floor of 4"]),
        ({"nonfinite": "ignore"}, ["'ignore'"]),
        ({"target": setpoint.Target(hoyer=0.8), "method": "magnitude"}, ["'magnitude'", "hoyer=0.8"]),
        ({"target": setpoint.Target(hoyer=0.8), "method": "l0"}, ["'l0'", "hoyer=0.8", "'gsp'", "a sparsity"]),
        ({"target": setpoint.Target(hoyer=0.8), "method": "hoyer"}, ["'hoyer'", "hoyer=0.8", "'gsp'", "a sparsity"]),
        ({"target": setpoint.Target(hoyer=0.8, sparsity=0.5), "method": "hoyer"}, ["'hoyer'", "hoyer=0.8"]),
        ({"target": 0.9, "unit": "row", "floor": 4, "method": "l0"}, ["at most", "floor of 4"]),
        ({"target": 0.9, "unit": "row", "floor": 4, "method": "hoyer"}, ["at most", "floor of 4"]),
        ({"method": GroupedSparseProjection(measure="hoyer")}, ["Target(hoyer"]),
        (
            {"method": GroupedSparseProjection(measure="zeros"), "target": setpoint.Target(hoyer=0.5)},
            ["measure='zeros'"],
        ),
        ({"method": GroupedSparseProjection(measure="mean")}, ["'mean'", "zeros, hoyer"]),
        ({"unit": (99, 99), "floor": 0}, ["single unit", "0.weight"]),
        ({"method": GroupedSparseProjection(vectors="tube")}, ["'tube'"]),
        ({"method": GroupedSparseProjection(weights={"9.weight": torch.ones(1)})}, ["'9.weight'", "0.weight"]),
        ({"method": GroupedSparseProjection(weights={"0.weight": -torch.ones(1)})}, ["'0.weight'", "not negative"]),
        ({"method": GroupedSparseProjection(weights={"0.weight": torch.ones(7)})}, ["'0.weight'", "shape (7,)"]),
        ({"method": GroupedSparseProjection(weights={"0.weight": [1.0]})}, ["'0.weight'", "a tensor"]),
        ({"method": GroupedSparseProjection(weights=3)}, ["weights=3", "mapping"]),
    ],
)
def test_refused_with_words(options, words):
    with pytest.raises(ValueError) as caught:
        attempt(**options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: setpoint.Target(sparsity=0.5, params=100), ["sparsity and params"]),
        (lambda: setpoint.Target(sparsity=0.5, cost="flop"), ["'flop'", "units, params"]),
        (lambda: setpoint.Target(params=0), ["params=0"]),
        (lambda: setpoint.Target(units=1.5), ["units=1.5"]),
        (lambda: setpoint.Target(), ["sparsity, units, params", "Target(sparsity=0.9)"]),
        (lambda: setpoint.Target(cost="flops"), ["none of sparsity", "hoyer was given"]),
        (lambda: setpoint.Target(units=20.0), ["units=20.0", "did you mean 20?"]),
        (lambda: setpoint.Target(units=3, cost="flops"), ["cost='flops'", "units was given"]),
        (lambda: setpoint.Target(0.5, cost="flop"), ["did you mean 'flops'?"]),
        (lambda: setpoint.Target(0.5, multiple_of=True), ["multiple_of=True"]),
        (lambda: setpoint.Target(latency_ms=5, device=3), ["device=3"]),
        (lambda: setpoint.Schedule(interval=1.5), ["interval=1.5"]),
        (lambda: setpoint.Schedule(interval=True), ["interval=True"]),
        (lambda: setpoint.Schedule(begin=True), ["begin=True"]),
        (lambda: setpoint.Schedule(end=True), ["end=True"]),
        (lambda: setpoint.Schedule(begin=float("nan")), ["begin=nan"]),
        (lambda: setpoint.Schedule("cubik"), ["'cubik'", "did you mean 'cubic'?"]),
        (lambda: setpoint.Schedule("quartic"), ["'quartic'", "cubic"]),
        (lambda: setpoint.Schedule(begin=-1), ["begin=-1"]),
        (lambda: setpoint.Schedule(end=1.5), ["end=1.5"]),
        (lambda: setpoint.Schedule(interval=0), ["interval=0"]),
    ],
)
def test_contradictions_are_refused_where_they_are_written(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)


NAN, INF = float("nan"), float("inf")
OUT_OF_RANGE = [
    *[(DeepHoyer, "tolerance", bad, "between 0 and 1") for bad in (0.0, 1.0, -0.1, 5, NAN)],
    *[(DeepHoyer, "start", bad, "must lie in [") for bad in (0.0, -1.0, 1e6, INF, NAN)],
    *[(DeepHoyer, field, bad, "at least 0") for field in ("proportional", "integral") for bad in (-1.0, INF, NAN)],
    *[(ConstrainedL0, "lr", bad, "above 0") for bad in (0.0, -0.1, 11.0, INF, NAN)],
    *[(ConstrainedL0, "opening", bad, "between 0.5 and 1") for bad in (0.5, 0.0, 1.0, 95, NAN)],
    *[(ConstrainedL0, "proportional", bad, "at least 0") for bad in (-1.0, INF, NAN)],
    *[(ConstrainedL0, "integral", bad, "above 0") for bad in (0.0, -1.0, INF, NAN)],
]


@pytest.mark.parametrize(("method", "option", "value", "words"), OUT_OF_RANGE)
def test_options_out_of_range(method, option, value, words):
    with pytest.raises(ValueError) as caught:
        method(**{option: value})
    assert f"{option}={value}" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_weights_that_are_not_finite(bad):
    model, opt, _ = build("mlp")
    with torch.no_grad():
        model[2].weight[1, 1] = bad
    with pytest.raises(ValueError, match=r"'2\.weight' holds NaN or infinite"):
        setpoint.Sparsifier(model, opt, target=0.5, steps=20)


def test_a_parameter_that_the_optimizer_does_not_hold():
    model = mlp()
    opt = torch.optim.SGD(model[:3].parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"'4\.weight' is not held by the optimizer"):
        setpoint.Sparsifier(model, opt, target=0.5, steps=20)
    assert set(setpoint.Sparsifier(model, opt, target=0.5, steps=20, exclude="4.*").masks) == {"0.weight", "2.weight"}


def test_frozen_parameters_are_left_and_refused_by_name():
    model = mlp()
    model[0].weight.requires_grad_(False)
    opt = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(ValueError, match=r"'0\.weight'.*frozen"):
        setpoint.Sparsifier(model, opt, target=0.5, steps=20, include="0.weight")
    report = setpoint.Sparsifier(model, opt, target=0.5, steps=20).report()
    assert "frozen" in report.left_dense["0.weight"]
    for p in model.parameters():
        p.requires_grad_(False)
    opt = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ValueError, match="frozen"):
        setpoint.Sparsifier(model, opt, target=0.5, steps=20)


def test_optimizers_that_move_many_times_a_step_and_what_is_none():
    model = mlp()
    with pytest.raises(ValueError, match="LBFGS"):
        setpoint.Sparsifier(model, torch.optim.LBFGS(model.parameters()), target=0.5, steps=20)
    with pytest.raises(TypeError, match="not str"):
        setpoint.Sparsifier(model, "adam", target=0.5, steps=20)


def test_a_method_that_sees_gradients_must_be_sparse_throughout():
    class Seer(setpoint.methods.Magnitude):
        name = "seer"
        sees_gradients = True

    with pytest.raises(ValueError, match=r"'seer'.*sees_gradients.*always_sparse = True"):
        attempt(method=Seer())


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.randn(3, 5), "mat1 and mat2"),
        ({"images": torch.randn(3, 20)}, "unexpected keyword argument 'images'"),
        ((torch.randn(3, 20), 1), "positional arguments"),
        ("text", "must be Tensor, not str"),
        ([torch.randn(3, 20)], "a list is the only argument"),
    ],
)
@pytest.mark.parametrize("unit", ["weight", "row", (2, 2)])
def test_example_inputs_that_the_model_cannot_be_run_on(inputs, words, unit):
    with pytest.raises(ValueError, match=f"the model cannot be run on example_inputs: .*{words}"):
        attempt(target=setpoint.Target(flops=0.5), unit=unit, example_inputs=inputs)


def test_a_refusal_leaves_no_trace():
    model, opt, _ = build("mlp")
    with pytest.raises(ValueError):
        setpoint.Sparsifier(model, opt, target=0.5, steps=20, method=GroupedSparseProjection(vectors="tube"))
    assert not opt._optimizer_step_post_hooks
    setpoint.Sparsifier(model, opt, target=0.5, steps=20)
