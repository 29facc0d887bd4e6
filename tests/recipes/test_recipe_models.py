"""The models: their sizes, their names, what they take and what they refuse."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from setpoint.recipes.models import build_model, example_input, model_names
from setpoint.recipes.models.densenet import DenseNet
from setpoint.recipes.models.resnet import ResNet
from setpoint.recipes.models.wideresnet import WideResNet

MNIST, CIFAR, DIGITS = (1, 28, 28), (3, 32, 32), (1, 8, 8)
IMAGE_MODELS = [name for name in model_names() if name != "gpt"]


def weights(model: nn.Module) -> int:
    """Count the entries of matrices and kernels, without biases and norms."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [("lenet300", MNIST, 266_200), ("lenet5", MNIST, 430_500), ("mlp", DIGITS, 64 * 128 + 128 * 64 + 64 * 10)],
)
def test_weights_without_biases(name: str, shape: tuple[int, int, int], expected: int) -> None:
    assert weights(build_model(name, shape=shape, classes=10)) == expected


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet20", 0.27),
        ("resnet32", 0.47),
        ("resnet56", 0.86),
        ("vgg16", 14.72),
        ("wideresnet16-4", 2.75),
        ("mobilenetv2", 2.24),
        ("densenet40", 1.02),
    ],
)
def test_parameters_are_those_of_the_papers(name: str, millions: float) -> None:
    assert parameters(build_model(name, shape=CIFAR, classes=10)) / 1e6 == pytest.approx(millions, abs=5e-3)


def test_resnet50_has_two_stems() -> None:
    with torch.device("meta"):
        large = build_model("resnet50", shape=(3, 224, 224), classes=1000)
        small = build_model("resnet50", shape=CIFAR, classes=1000)
        inputs = torch.empty(1, 3, 224, 224)
    assert parameters(large) == 25_557_032
    assert parameters(large) - parameters(small) == 64 * 3 * (7 * 7 - 3 * 3)
    with FlopCounterMode(display=False) as counter:
        large(inputs)
    assert counter.get_total_flops() == pytest.approx(2 * 4.09e9, rel=2e-3)


@pytest.mark.parametrize("name", IMAGE_MODELS)
@pytest.mark.parametrize(("shape", "classes"), [(CIFAR, 7), ((1, 36, 44), 3)])
def test_every_model_maps_images_to_logits_and_trains(name: str, shape: tuple[int, int, int], classes: int) -> None:
    model = build_model(name, shape=shape, classes=classes, width=0.25)
    logits = model(torch.randn(2, *shape))
    assert logits.shape == (2, classes)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "name", ["mlp", "lenet300", "convnet", "resnet20", "wideresnet16-4", "resnet50", "mobilenetv2", "densenet40"]
)
def test_digits_are_large_enough(name: str) -> None:
    assert build_model(name, shape=DIGITS, classes=10)(torch.randn(2, *DIGITS)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "shape", "smallest"), [("lenet5", DIGITS, 16), ("lenet5", (1, 15, 40), 16), ("vgg16", MNIST, 32)]
)
def test_inputs_that_are_too_small_are_refused(name: str, shape: tuple[int, int, int], smallest: int) -> None:
    _, height, width = shape
    with pytest.raises(
        ValueError, match=f"{name} was .* {height}x{width}.* at least {smallest}x{smallest} is possible"
    ):
        build_model(name, shape=shape, classes=10)


@pytest.mark.parametrize(("name", "smallest"), [("lenet5", 16), ("vgg16", 32)])
def test_the_smallest_inputs_do(name: str, smallest: int) -> None:
    model = build_model(name, shape=(1, smallest, smallest), classes=10, width=0.1)
    assert model(torch.randn(2, 1, smallest, smallest)).shape == (2, 10)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_initial_weights_follow_from_the_global_seed(name: str) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build_model(name, shape=CIFAR, classes=10, width=0.25).state_dict())
    assert all(states[0][key].equal(states[1][key]) for key in states[0])
    assert not all(states[0][key].equal(states[2][key]) for key in states[0])


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_width_multiplies_hidden_layers(name: str) -> None:
    with torch.device("meta"):
        usual, double = (build_model(name, shape=CIFAR, classes=10, width=width) for width in (None, 2))
    ratios = []
    for (_, small), (_, large) in zip(usual.named_parameters(), double.named_parameters(), strict=True):
        ratios.append(large.numel() / small.numel())
    assert set(ratios) <= {1, 2, 4}
    assert parameters(double) > 1.9 * parameters(usual)


def test_names_can_be_read_in_a_report() -> None:
    names = {
        "mlp": "fc1",
        "lenet5": "conv2",
        "convnet": "bn3",
        "resnet20": "layer2.0.shortcut.conv",
        "wideresnet16-4": "layer3.1.conv2",
        "vgg16": "features.conv5_3",
        "resnet50": "layers.3.0.shortcut.conv",
        "mobilenetv2": "blocks.16.layers",
        "densenet40": "blocks.4.11.conv",
    }
    for name, module in names.items():
        assert module in dict(build_model(name, shape=CIFAR, classes=10, width=0.25).named_modules())


def test_projections_stand_only_where_shapes_change() -> None:
    model = build_model("resnet20", shape=CIFAR, classes=10)
    shortcuts = [name for name, _ in model.named_modules() if name.endswith("shortcut")]
    assert shortcuts == ["layer2.0.shortcut", "layer3.0.shortcut"]


def test_what_is_not_possible_is_refused() -> None:
    with pytest.raises(ValueError, match=f"unknown model 'resnet18'; possible are {', '.join(model_names())}"):
        build_model("resnet18", shape=CIFAR, classes=10)
    with pytest.raises(ValueError, match="classes=0 was asked for"):
        build_model("mlp", shape=CIFAR, classes=0)
    with pytest.raises(ValueError, match=r"shape=\(0, 8, 8\) was asked for"):
        build_model("mlp", shape=(0, 8, 8), classes=10)
    for width in (0, -1.0, 16, float("nan")):
        with pytest.raises(ValueError, match=f"width={width} was asked for; it multiplies"):
            build_model("resnet20", shape=CIFAR, classes=10, width=width)
    with pytest.raises(ValueError, match="depth 21 was asked for; 6n"):
        ResNet(CIFAR, 10, depth=21)
    with pytest.raises(ValueError, match="depth 41 was asked for; 3n"):
        DenseNet(CIFAR, 10, depth=41)
    with pytest.raises(ValueError, match="depth 4 was asked for; 6n"):
        WideResNet(CIFAR, 10, depth=4, widening=4)


def test_models_of_text_take_tokens() -> None:
    usual, half = (build_model("gpt", shape=(16,), classes=256, width=width) for width in (None, 0.5))
    assert parameters(usual) == 4 * 12 * 128**2 + 128 * (256 + 16 + 256) + 4 * 13 * 128 + 2 * 128
    assert (usual.tokens.embedding_dim, half.tokens.embedding_dim) == (128, 64)
    tokens = example_input((16,))
    assert (tokens.dtype, tokens.shape) == (torch.int64, (1, 16))
    assert half(tokens).shape == (1, 16, 256)


@pytest.mark.parametrize("width", [0.01, 0.3, 0.77, 1.9])
def test_heads_divide_any_width(width: float) -> None:
    assert build_model("gpt", shape=(4,), classes=9, width=width)(example_input((4,))).shape == (1, 4, 9)


def test_models_and_inputs_of_another_kind_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"model 'mlp' takes images, and shape=\(16,\) is of texts; .* gpt are possible"
    ):
        build_model("mlp", shape=(16,), classes=256)
    with pytest.raises(ValueError, match=r"model 'gpt' takes texts, and shape=\(3, 32, 32\) is of images; .*, vgg16, "):
        build_model("gpt", shape=CIFAR, classes=256)
    with pytest.raises(ValueError, match=r"shape=\(0,\) was asked for; \(context,\)"):
        build_model("gpt", shape=(0,), classes=256)
    with pytest.raises(ValueError, match=r"shape=\(3, 32\) was asked for; \(channels, height, width\)"):
        build_model("mlp", shape=(3, 32), classes=256)
