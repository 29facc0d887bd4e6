"""Every model by its name."""

from collections.abc import Callable
from importlib import import_module

from torch import nn

from setpoint.recipes.models.bottleneck import BottleneckResNet
from setpoint.recipes.models.convnet import ConvNet
from setpoint.recipes.models.densenet import DenseNet
from setpoint.recipes.models.gpt import GPT
from setpoint.recipes.models.lenet import LeNet5
from setpoint.recipes.models.mlp import Perceptron
from setpoint.recipes.models.mobilenet import MobileNetV2
from setpoint.recipes.models.resnet import ResNet
from setpoint.recipes.models.shapes import Shape, scale_width
from setpoint.recipes.models.vgg import VGG16
from setpoint.recipes.models.wideresnet import WideResNet

Builder = Callable[[Shape, int, float], nn.Module]
TextBuilder = Callable[[int, int, float], nn.Module]

# Above this a width is more likely a number of channels than a multiplier.
_LARGEST_WIDTH = 10


def _perceptron(*hidden: int) -> Builder:
    return lambda shape, classes, width: Perceptron(shape, classes, [scale_width(size, width) for size in hidden])


def _resnet(depth: int) -> Builder:
    return lambda shape, classes, width: ResNet(shape, classes, depth, width)


def _gpt(depth: int, heads: int, head_width: int) -> TextBuilder:
    # The width of the heads is multiplied, so that they divide the model's width.
    return lambda context, vocabulary, width: GPT(
        vocabulary, context, heads * scale_width(head_width, width), depth, heads
    )


_BUILDERS: dict[str, Builder] = {
    "mlp": _perceptron(128, 64),
    "lenet300": _perceptron(300, 100),
    "lenet5": LeNet5,
    "convnet": ConvNet,
    "resnet20": _resnet(20),
    "resnet32": _resnet(32),
    "resnet56": _resnet(56),
    "resnet50": lambda shape, classes, width: BottleneckResNet(shape, classes, width=width),
    "vgg16": VGG16,
    "wideresnet16-4": lambda shape, classes, width: WideResNet(shape, classes, 16, 4, width),
    "mobilenetv2": MobileNetV2,
    "densenet40": lambda shape, classes, width: DenseNet(shape, classes, 40, width=width),
}
_TEXT_BUILDERS: dict[str, TextBuilder] = {"gpt": _gpt(depth=4, heads=4, head_width=32)}


def model_names() -> tuple[str, ...]:
    """Return the names that :func:`build_model` knows."""
    return (*_BUILDERS, *_TEXT_BUILDERS)


def build_model(name: str, *, shape: tuple[int, ...], classes: int, width: float | int | None = None) -> nn.Module:
    """Build a model with initial weights from torch's global generator (``torch.manual_seed``).

    Args:
        name: One of :func:`model_names`.
        shape: (C, H, W) of an image, or (T,) of a text.
        classes: Number of outputs; of a text, of different tokens.
        width: Multiplier of the channels or neurons of every hidden layer, 1 by default: ``resnet20`` begins with 16
            channels at 1, with 32 at 2, with 8 at 0.5.

    Returns:
        A module that maps images (N, C, H, W) to logits (N, classes), or tokens (N, T) to logits (N, T, classes).

    Raises:
        ValueError: If the name is not known, the model is not one for such inputs, a size is not possible, or the
            inputs are too small for the model.
    """
    if name not in model_names():
        raise ValueError(f"unknown model {name!r}; possible are {', '.join(model_names())}")
    _check_shape(name, shape)
    if classes < 1:
        raise ValueError(f"classes={classes} was asked for; at least 1 is possible")
    factor = 1.0 if width is None else float(width)
    if not 0 < factor <= _LARGEST_WIDTH:
        raise ValueError(
            f"width={width} was asked for; it multiplies the usual numbers of channels, "
            f"so that above 0 and up to {_LARGEST_WIDTH} is possible"
        )
    if name in _TEXT_BUILDERS:
        return _TEXT_BUILDERS[name](shape[0], classes, factor)
    channels, height, wide = shape
    return _BUILDERS[name]((channels, height, wide), classes, factor)


def _check_shape(name: str, shape: tuple[int, ...]) -> None:
    takes, axes = ("texts", "(context,)") if name in _TEXT_BUILDERS else ("images", "(channels, height, width)")
    given = {1: "texts", 3: "images"}.get(len(shape))
    if given is not None and given != takes:
        others = ", ".join(_TEXT_BUILDERS if given == "texts" else _BUILDERS)
        raise ValueError(
            f"model {name!r} takes {takes}, and shape={shape} is of {given}; for these, {others} are possible"
        )
    if given is None or min(shape) < 1:
        raise ValueError(f"shape={shape} was asked for; {axes}, each at least 1, is possible")


def import_model(reference: str) -> nn.Module:
    """Build a model of the user's own: call what `package.module:function` names, without arguments.

    Raises:
        ValueError: If there is no such module or function, or what it gives is no module.
    """
    path, _, name = reference.partition(":")
    try:
        built = getattr(import_module(path), name)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"model {reference!r} cannot be made: {error}") from error
    if not isinstance(built, nn.Module):
        raise ValueError(f"model {reference!r} is of type {type(built).__name__}; a torch.nn.Module is possible")
    return built
