"""Every model by its name."""

from collections.abc import Callable
from importlib import import_module

from torch import nn

from setpoint.recipes.models.convnet import ConvNet
from setpoint.recipes.models.lenet import LeNet5
from setpoint.recipes.models.mlp import Perceptron
from setpoint.recipes.models.resnet import ResNet
from setpoint.recipes.models.shapes import Shape, scale_width
from setpoint.recipes.models.vgg import VGG16
from setpoint.recipes.models.wideresnet import WideResNet

Builder = Callable[[Shape, int, float], nn.Module]

# Above this a width is more likely a number of channels than a multiplier.
_LARGEST_WIDTH = 10


def _perceptron(*hidden: int) -> Builder:
    return lambda shape, classes, width: Perceptron(shape, classes, [scale_width(size, width) for size in hidden])


def _resnet(depth: int) -> Builder:
    return lambda shape, classes, width: ResNet(shape, classes, depth, width)


_BUILDERS: dict[str, Builder] = {
    "mlp": _perceptron(128, 64),
    "lenet300": _perceptron(300, 100),
    "lenet5": LeNet5,
    "convnet": ConvNet,
    "resnet20": _resnet(20),
    "resnet32": _resnet(32),
    "resnet56": _resnet(56),
    "vgg16": VGG16,
    "wideresnet16-4": lambda shape, classes, width: WideResNet(shape, classes, 16, 4, width),
}


def model_names() -> tuple[str, ...]:
    """Return the names that :func:`build_model` knows."""
    return tuple(_BUILDERS)


def build_model(name: str, *, shape: Shape, classes: int, width: float | int | None = None) -> nn.Module:
    """Build a model with initial weights from torch's global generator (``torch.manual_seed``).

    Args:
        name: One of :func:`model_names`.
        shape: (C, H, W) of an input.
        classes: Number of outputs.
        width: Multiplier of the channels or neurons of every hidden layer, 1 by default: ``resnet20`` begins with 16
            channels at 1, with 32 at 2, with 8 at 0.5.

    Returns:
        A module that maps inputs (N, C, H, W) to logits (N, classes).

    Raises:
        ValueError: If the name is not known, a size is not possible, or the inputs are too small for the model.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown model {name!r}; possible are {', '.join(model_names())}")
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape={shape} was asked for; (channels, height, width), each at least 1, is possible")
    if classes < 1:
        raise ValueError(f"classes={classes} was asked for; at least 1 is possible")
    factor = 1.0 if width is None else float(width)
    if not 0 < factor <= _LARGEST_WIDTH:
        raise ValueError(
            f"width={width} was asked for; it multiplies the usual numbers of channels, "
            f"so that above 0 and up to {_LARGEST_WIDTH} is possible"
        )
    return _BUILDERS[name](shape, classes, factor)


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
