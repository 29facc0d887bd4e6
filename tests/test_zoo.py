"""The zoo: every method on every family of models, to an exact budget on the real, smaller model."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils import _pytree
from wiring_cnns import UNet
from wiring_hugging_face import build as build_hugging_face

import setpoint
from setpoint.budget import count_flops
from setpoint.inputs import call_arguments
from setpoint.recipes.models import build_model
from setpoint.recipes.models.gpt import GPT
from test_contract import METHODS

STEPS, SHARE = 6, 0.8


def recipe(name: str, side: int, width: float, channels: int = 3):
    return build_model(name, shape=(channels, side, side), classes=5, width=width), torch.randn(4, channels, side, side)


def decoder():
    return GPT(vocabulary=40, context=16, width=24, depth=2, heads=4), torch.randint(40, (2, 8))


def hugging_face(name: str, argument: str = "input_ids"):
    model, inputs = build_hugging_face(name)
    return model.train(), {argument: inputs}


MODELS: dict[str, Callable] = {
    "LeNet-5": partial(recipe, "lenet5", 20, 0.3, 1),
    "VGG-16-BN": partial(recipe, "vgg16", 32, 0.1),
    "ResNet-20": partial(recipe, "resnet20", 8, 0.25),
    "ResNet-50": partial(recipe, "resnet50", 8, 1 / 16),
    "WideResNet-16-4": partial(recipe, "wideresnet16-4", 8, 0.125),
    "MobileNetV2": partial(recipe, "mobilenetv2", 8, 0.25),
    "DenseNet-40": partial(recipe, "densenet40", 8, 0.25),
    "U-Net": lambda: (UNet(), torch.randn(4, 1, 8, 8)),
    "GPT": decoder,
    "BERT": partial(hugging_face, "BertModel"),
    "GPT-2": partial(hugging_face, "GPT2LMHeadModel"),
    "Llama, queries grouped": partial(hugging_face, "LlamaForCausalLM"),
    "ViT": partial(hugging_face, "ViTForImageClassification", "pixel_values"),
}
TRANSFORMERS = list(MODELS)[8:]


def cases() -> list:
    """With every method each model meets both costs and, of transformers, all pairs of a cost and a unit."""
    found = []
    for m, model in enumerate(MODELS):
        for i, method in enumerate(METHODS):
            cost = ("params", "flops")[(m + i) % 2]
            unit = ("neuron", "head")[(m + i) // 2 % 2] if model in TRANSFORMERS else "channel"
            found.append(pytest.param(model, method, unit, cost, id=f"{model}-{method}-{unit}-{cost}"))
    return found


def outputs(model: nn.Module, inputs) -> list[torch.Tensor]:
    args, kwargs = call_arguments(inputs)
    leaves = _pytree.tree_leaves(model(*args, **kwargs))
    return [t for t in leaves if isinstance(t, torch.Tensor) and t.is_floating_point()]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, inputs, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        sum((t - 1).square().mean() for t in outputs(model, inputs)).backward()
        optimizer.step()


def real_cost(model: nn.Module, cost: str, inputs) -> int:
    if cost == "params":
        return sum(p.numel() for p in model.parameters())
    by_parameter, between = count_flops(model, inputs)
    return sum(by_parameter.values()) + between


def with_the_cheapest_unit(sparsifier: setpoint.Sparsifier, dense: nn.Module) -> nn.Module:
    """The smaller model, but for one more unit of the group in which that costs the least."""
    kept, (budget,) = sparsifier.kept_units(), sparsifier._budgets
    widths = {name: len(units) for name, units in kept.items()}
    sizes = {layer.name: layer.counts[0] for layer in sparsifier._layers}
    wider = [{**widths, name: width + 1} for name, width in widths.items() if width < sizes[name]]
    cheapest = min(wider, key=lambda w: budget.whole(list(w.values())))
    sparsifier.wiring.resize(dense, {name: torch.arange(width) for name, width in cheapest.items()})
    return dense


def difference(first: nn.Module, second: nn.Module, inputs, dtype: torch.dtype = torch.float32) -> float:
    """Of two models' outputs in evaluation mode, relative to the largest."""
    first, second = (copy.deepcopy(m).to(dtype).eval() for m in (first, second))
    inputs = _pytree.tree_map(lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)
    with torch.no_grad():
        pairs = list(zip(outputs(first, inputs), outputs(second, inputs), strict=True))
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def rounding(model: nn.Module, inputs) -> float:
    """How far float32 is from float64."""
    with torch.no_grad():
        single = outputs(copy.deepcopy(model).eval(), inputs)
        inputs = _pytree.tree_map(lambda t: t.double() if t.is_floating_point() else t, inputs)
        double = outputs(copy.deepcopy(model).double().eval(), inputs)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(single, double, strict=True))


# Of so few units, methods whose support moves say that none will.
@pytest.mark.filterwarnings("ignore:.*none of them will move")
@pytest.mark.parametrize(("name", "method", "unit", "cost"), cases())
def test_the_smaller_model_meets_its_budget_and_computes_the_same(name, method, unit, cost):
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    dense = copy.deepcopy(model)
    whole = real_cost(model, cost, inputs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    target = setpoint.Target(**{cost: SHARE})
    sparsifier = setpoint.Sparsifier(
        model, optimizer, method=method, target=target, unit=unit, steps=STEPS, example_inputs=inputs
    )
    train(model, optimizer, inputs, STEPS)

    report = sparsifier.report()
    assert report.exact
    small = setpoint.compact(sparsifier, inputs)
    assert real_cost(small, cost, inputs) == report.budgets[0].kept <= SHARE * whole
    assert real_cost(with_the_cheapest_unit(sparsifier, dense), cost, inputs) > SHARE * whole
    assert difference(model, small, inputs, torch.float64) < 1e-10
    assert difference(model, small, inputs) < 1e-5 + rounding(model, inputs)

    before = [p.detach().clone() for p in small.parameters()]
    train(small, torch.optim.SGD(small.parameters(), lr=0.1), inputs, 1)
    assert not all(torch.equal(a, b) for a, b in zip(before, small.parameters()))
    assert all(bool(torch.isfinite(p).all()) for p in small.parameters())
