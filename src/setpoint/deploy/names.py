"""Classes and functions by their names: how a file may speak of them, and which it may speak of.

A name is `package.module:Class` or `package.module:function`. To find it is a look into the dictionary of a module that
is imported already, or whose package is trusted; nothing is called, and no attribute is computed. What is found must
carry the very name it was found under, so that `torch:os` leads nowhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
import types
from collections.abc import Collection, Iterable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.overrides import get_overridable_functions

from setpoint.deploy.container import ArchiveError

# Packages whose modules may be imported in any case: importing them does nothing but define.
_KNOWN = ("torch.nn", "setpoint")

# Classes of the standard library that hold nothing but attributes.
_BAGS = (types.SimpleNamespace, argparse.Namespace)

# By these a class has its own way to be made, stored or ended, which would not be heeded, or would run.
_HOOKS = ("__new__", "__del__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")

_HEAP_TYPE = 1 << 9


class ObstacleError(ValueError):
    """What stands in the way of describing a model, or of making it: the thing, and what about it."""


def name_of(thing: Any) -> str:
    """The name of a class or function.

    Raises:
        ObstacleError: If it is not found under its name.
    """
    torch_name = _torch_names().get(id(thing))
    if torch_name is not None:
        return torch_name
    name = f"{thing.__module__}:{thing.__qualname__}"
    if "<lambda>" in name:
        raise ObstacleError("a lambda, which has no name to find it by")
    if "<locals>" in name:
        raise ObstacleError(f"{_dotted(name)}, which was defined inside a function and cannot be found again")
    if _look_up(name) is not thing:
        raise ObstacleError(f"{_dotted(name)}, which is not found under that name")
    return name


def find_all(names: Iterable[str], trusted: Collection[str]) -> list[Any]:
    """What the names stand for.

    Args:
        names: Of classes and functions.
        trusted: Packages, or modules in them, that may be imported.

    Raises:
        ArchiveError: If one is not to be found, or in a module that is not imported and not trusted.
    """
    names = list(names)
    modules = {name.partition(":")[0] for name in names if name not in _torch_functions()}
    unknown = sorted(module for module in modules if module not in sys.modules and not _may_import(module, trusted))
    if unknown:
        packages = tuple(dict.fromkeys(map(package_of, unknown)))
        raise ArchiveError(
            f"the model is made of code in {', '.join(unknown)}, which is not imported here. If you trust it, import "
            f"it before, or name its package: load_model(path, trusted={packages!r}), or --trust {packages[0]}"
        )
    for module in sorted(modules - sys.modules.keys()):
        _import(module)
    return [_find(name) for name in names]


def package_of(name: str) -> str:
    """The top-level package of a name or module."""
    return name.partition(":")[0].partition(".")[0]


def check_module_class(cls: Any) -> type[nn.Module]:
    """Raise ObstacleError unless instances are wholly described by what torch keeps of a module, and by attributes."""
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ObstacleError(f"{_said(cls)}, which is no class of modules")
    if issubclass(cls, torch.jit.ScriptModule):
        raise ObstacleError(f"{_said(cls)}, which is TorchScript")
    _refuse_hooks(cls, allowed=[base for base in cls.__mro__ if package_of(base.__module__) == "torch"])
    return cls


def check_value_class(cls: Any, packages: Collection[str]) -> Any:
    """Raise ObstacleError unless instances are wholly described by their attributes.

    Args:
        cls: A dataclass, or a class of one of the packages.
        packages: That the classes of the model's modules come from.
    """
    if not isinstance(cls, type):
        raise ObstacleError(f"{_said(cls)}, which is no class")
    if cls in _BAGS:
        return cls
    if not (dataclasses.is_dataclass(cls) or package_of(cls.__module__) in packages):
        raise ObstacleError(
            f"an object of class {_said(cls)}; possible are numbers, texts, containers of them, tensors, dataclasses, "
            "and plain objects of the packages of the model's modules"
        )
    if not all(base.__flags__ & _HEAP_TYPE for base in cls.__mro__[:-1]):
        raise ObstacleError(f"an object of class {_said(cls)}, which is more than its attributes")
    _refuse_hooks(cls)
    return cls


def check_function(function: Any, packages: Collection[str]) -> Any:
    """Raise ObstacleError unless it is a function on tensors of torch's, or one of the packages."""
    if id(function) in _torch_names():
        return function
    plain = isinstance(function, types.FunctionType) and "." not in name_of(function).partition(":")[2]
    if not plain or package_of(function.__module__) not in packages:
        raise ObstacleError(
            f"{_said(function)}; possible are functions of torch on tensors, and those of the packages of the model's "
            "modules"
        )
    return function


def _refuse_hooks(cls: type, allowed: Collection[type] = ()) -> None:
    for base in cls.__mro__[:-1]:
        for hook in _HOOKS:
            found = vars(base).get(hook)
            # Frozen dataclasses with slots get a pair from the standard library, which says what is said here.
            usual = base in allowed and hook not in ("__new__", "__del__")
            if found is not None and not usual and getattr(found, "__module__", None) != "dataclasses":
                raise ObstacleError(f"{_said(cls)}, which has a {hook} of its own")


def _may_import(module: str, trusted: Collection[str]) -> bool:
    return "__main__" not in module.split(".") and any(
        module == package or module.startswith(f"{package}.") for package in (*_KNOWN, *trusted)
    )


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ArchiveError(f"the model is made of code in {module}, which cannot be imported: {error}") from error


def _find(name: str) -> Any:
    found = _torch_functions().get(name) or _look_up(name)
    if found is not None:
        return found
    if package_of(name) == "__main__":
        raise ArchiveError(
            f"the model is made of {name.partition(':')[2]}, which was defined in the script that saved it, and is not "
            "in this one. Move it to a module that both import, and save again"
        )
    raise ArchiveError(f"the model is made of {_dotted(name)}, which is not found here: has its package changed?")


def _look_up(name: str) -> Any:
    """What stands under a name, and calls itself so; None otherwise."""
    module, _, qualified = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualified.split("."):
        found = vars(found).get(part) if isinstance(found, type | types.ModuleType) else None
    own = isinstance(found, type | types.FunctionType) and f"{found.__module__}:{found.__qualname__}" == name
    return found if own else None


@cache
def _torch_functions() -> dict[str, Any]:
    """Functions on tensors, by name: those that torch lets other tensor types override, and all of its activations."""
    spaces = (torch.nn.functional, torch, torch.special, torch.linalg, torch.fft)
    on_tensors = {id(function) for functions in get_overridable_functions().values() for function in functions}
    return {
        f"{space.__name__}:{name}": function
        for space in spaces
        for name, function in vars(space).items()
        if not isinstance(function, type)
        if id(function) in on_tensors
        or id(vars(space).get(name.removesuffix("_"))) in on_tensors
        # Old spellings, of which torch thinks only what they call.
        or (space is torch.nn.functional and name in ("tanh", "sigmoid", "hardsigmoid", "hardswish"))
    }


@cache
def _torch_names() -> dict[int, str]:
    return {id(function): name for name, function in reversed(_torch_functions().items())}


def _dotted(name: str) -> str:
    return name.replace(":", ".")


def _said(thing: Any) -> str:
    """A class or function in words."""
    named = isinstance(thing, type | types.FunctionType | types.BuiltinFunctionType)
    return f"{thing.__module__}.{thing.__qualname__}" if named else f"an object of class {_said(type(thing))}"
