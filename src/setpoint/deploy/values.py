"""Attributes of modules as JSON, and back.

Numbers, texts, booleans, None and lists are themselves. All else is an object with one key, the *tag*, which says what
it is. Modules, tensors and objects with attributes are entries of tables, so that what was one stays one.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from setpoint.deploy.names import (
    ObstacleError,
    check_function,
    check_module_class,
    check_value_class,
    name_of,
)
from setpoint.deploy.states import settable
from setpoint.deploy.tables import Table, entry_of
from setpoint.norms import WholeMomentum

Json = Any
T = TypeVar("T")

_PLAIN = (type(None), bool, int, float, str)
_NUMBERS = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)

# By tag: the type, what is written of it, and how it is read. The types' own constructors take nothing but these.
_VALUES: dict[str, tuple[type, Callable[[Any], Json], Callable[[Any], Any]]] = {
    "dtype": (torch.dtype, lambda value: str(value)[6:], lambda text: _of_torch(text, torch.dtype)),
    "layout": (torch.layout, lambda value: str(value)[6:], lambda text: _of_torch(text, torch.layout)),
    "format": (torch.memory_format, lambda value: str(value)[6:], lambda text: _of_torch(text, torch.memory_format)),
    "device": (torch.device, str, lambda text: torch.device(str(text))),
    "size": (torch.Size, list, torch.Size),
    "complex": (complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    "range": (range, lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
}
_CONTAINERS: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_MAPPINGS: dict[str, Callable[[Any], Any]] = {"dict": dict, "ordered": OrderedDict}
# Keys of one hash in a set or mapping.
_MOST_ALIKE = 100
# What may be hashed: no code of anybody's runs for it.
_HASHED = (*_PLAIN, complex, range, torch.dtype, torch.device, torch.Size)


class Writer:
    """Writes values, and gathers what they refer to.

    Args:
        packages: that the classes of the model's modules come from.

    Attributes:
        queue: modules, tensors and objects that were referred to, with their paths.
        names: of classes and functions, with their numbers.
    """

    def __init__(self, packages: set[str]) -> None:
        self.packages = packages
        self.queue: list[tuple[object, str]] = []
        self.names: dict[str, int] = {}
        self.modules: Table[nn.Module] = Table(self.queue)
        self.tensors: Table[Tensor] = Table(self.queue)
        self.objects: Table[object] = Table(self.queue)

    def name(self, thing: Any) -> int:
        """The number of a class's or function's name."""
        return self.names.setdefault(name_of(thing), len(self.names))

    def write(self, value: Any, path: str) -> Json:
        """A value in JSON.

        Args:
            value: To write.
            path: Where it was found.

        Raises:
            ObstacleError: If it is nothing that can be described.
        """
        if isinstance(value, WholeMomentum):
            return value.own
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind is list:
            return [self.write(entry, path) for entry in value]
        for tag, (of, write, _) in _VALUES.items():
            if kind is of:
                return {tag: write(value)}
        if kind in _CONTAINERS.values():
            return {kind.__name__: self._entries(value, path)}
        for tag, of_mapping in _MAPPINGS.items():
            if kind is of_mapping:
                _check_all_hashed(value)
                return {tag: [[self.write(key, path), self.write(entry, path)] for key, entry in value.items()]}
        tag, content = self._reference(value, path)
        return {tag: content}

    def _entries(self, value: Any, path: str) -> Json:
        if isinstance(value, tuple):
            return [self.write(entry, path) for entry in value]
        # In an order of their own, so that the same model gives the same file.
        _check_all_hashed(value)
        return sorted((self.write(entry, path) for entry in value), key=repr)

    def _reference(self, value: Any, path: str) -> tuple[str, Json]:
        if isinstance(value, Tensor):
            return "tensor", self.tensors.number(value, path)
        if isinstance(value, nn.Module):
            return "module", self.modules.number(value, path)
        if isinstance(value, weakref.ref) and isinstance(tensor := value(), Tensor):
            return "weak", self.tensors.number(tensor, path)
        if isinstance(value, Enum) and value.name in type(value).__members__:
            return "member", [self.name(type(value)), value.name]
        if isinstance(value, np.generic) and value.dtype.name in _NUMBERS:
            return "number", [value.dtype.name, value.item()]
        if isinstance(value, type):
            return "class", self.name(check_module_class(value))
        if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
            return "function", self.name(check_function(value, self.packages))
        if type(value) is functools.partial:
            return "partial", [
                self.name(_check_prepared(value.func)),
                self.write(list(value.args), path),
                self.write(value.keywords, path),
            ]
        check_value_class(type(value), self.packages)
        return "object", self.objects.number(value, path)

    def attributes(self, values: Mapping[str, Any], path: str) -> Json:
        """Attributes by name.

        Raises:
            ObstacleError: Naming the attribute.
        """
        return {name: self._attribute(name, value, path) for name, value in settable(values).items()}

    def _attribute(self, name: str, value: object, path: str) -> Json:
        try:
            return self.write(value, f"{path}.{name}" if path else name)
        except ObstacleError as error:
            raise ObstacleError(f"its attribute {name!r} is {error}") from error
        except RecursionError:
            raise ObstacleError(f"its attribute {name!r} is nested too deeply, or in itself") from None


@dataclass(frozen=True)
class Reader:
    """Reads what `Writer` wrote, given the entries of its tables.

    Raises an exception of Python's own kinds, or ObstacleError, for what it cannot have written.
    """

    packages: set[str]
    names: Sequence[Any]
    modules: Sequence[nn.Module]
    tensors: Sequence[Tensor]
    objects: Sequence[object]

    def read(self, json: Json) -> Any:
        """A value that was written."""
        if type(json) in _PLAIN:
            return json
        if isinstance(json, list):
            return [self.read(entry) for entry in json]
        ((tag, content),) = json.items()
        if tag in _VALUES:
            return _VALUES[tag][2](content)
        if tag in _CONTAINERS:
            entries = [self.read(entry) for entry in content]
            return _CONTAINERS[tag](entries if tag == "tuple" else _check_all_hashed(entries))
        if tag in _MAPPINGS:
            keys = _check_all_hashed([self.read(key) for key, _ in content])
            return _MAPPINGS[tag](zip(keys, [self.read(entry) for _, entry in content]))
        return self._dereference(tag, content)

    def _dereference(self, tag: str, content: Json) -> Any:
        if tag == "tensor":
            return entry_of(self.tensors, content)
        if tag == "weak":
            return weakref.ref(entry_of(self.tensors, content))
        if tag == "module":
            return entry_of(self.modules, content)
        if tag == "object":
            return entry_of(self.objects, content)
        if tag == "class":
            return check_module_class(entry_of(self.names, content))
        if tag == "function":
            return check_function(entry_of(self.names, content), self.packages)
        if tag == "member":
            return _member(entry_of(self.names, content[0]), content[1])
        if tag == "number":
            return np.dtype(_NUMBERS[_NUMBERS.index(content[0])]).type(content[1])
        if tag == "partial":
            function = _check_prepared(entry_of(self.names, content[0]))
            return functools.partial(function, *self.read(content[1]), **self.read(content[2]))
        raise ValueError(f"unknown tag {tag!r}")

    def attributes(self, json: Mapping[str, Json]) -> dict[str, Any]:
        """Attributes by name."""
        return {name: self.read(value) for name, value in settable(json).items()}


def _check_prepared(function: Any) -> Any:
    """What may be given arguments beforehand: classes of modules, and functions on tensors of torch's."""
    return check_module_class(function) if isinstance(function, type) else check_function(function, ())


def _check_hashed(value: Any) -> Any:
    if isinstance(value, tuple | frozenset) and type(value) in (tuple, frozenset):
        for entry in value:
            _check_hashed(entry)
    elif type(value) not in _HASHED and not isinstance(value, Enum):
        raise ObstacleError(f"an object of class {type(value).__qualname__} in a set, or as a key")
    return value


def _check_all_hashed(values: Collection[T]) -> Collection[T]:
    """Raise ObstacleError unless all may be hashed, and are told apart by it: what is not takes time by the square."""
    for value in values:
        _check_hashed(value)
    # As texts, whose own hashes nobody can foresee.
    if len(values) > _MOST_ALIKE and max(Counter(str(hash(value)) for value in values).values()) > _MOST_ALIKE:
        raise ObstacleError(f"more than {_MOST_ALIKE} keys of one hash")
    return values


def _member(cls: Any, name: str) -> Enum:
    if not issubclass(cls, Enum):
        raise TypeError(f"{cls} is no enumeration")
    member: Enum = cls._member_map_[name]
    return member


def _of_torch(name: str, kind: type[T]) -> T:
    found = vars(torch)[name]
    if not isinstance(found, kind):
        raise TypeError(f"torch.{name} is no {kind.__name__}")
    return found
