"""A run's config as a YAML file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked
from yaml.constructor import ConstructorError

from setpoint.recipes.config import TrainConfig
from setpoint.recipes.defaults import resolve
from setpoint.writing import atomic_path

_ADAPTER = TypeAdapter(checked(TrainConfig, frozen=True, config=ConfigDict(extra="forbid")))
_MOST_BYTES, _MOST_DEPTH = 1 << 20, 20
_LISTED = 100
_NAMES = [f.name for f in fields(TrainConfig)]


# What PyYAML raises for texts that are no YAML, or that its constructors of numbers and dates cannot read.
_FAULTS = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


class _Loader(yaml.SafeLoader):
    """Numbers as in YAML 1.2, and nothing that a list of options has no use for: references, repeats, deep nesting.

    In 1.1, PyYAML's, `2:4` is the number 124 (base 60), and `2e-3` is text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, rule) for tag, rule in rules if tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise ConstructorError(None, None, "anchors and aliases (& and *) are not possible", event.start_mark)
        if self._depth == _MOST_DEPTH:
            raise ConstructorError(None, None, f"it is nested more than {_MOST_DEPTH} deep", event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise ConstructorError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 63:
        raise ConstructorError(None, None, f"the number {text[:20]}… has more than 64 bits", node.start_mark)
    return int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def load_config(path: Path) -> TrainConfig:
    """Read a config; keys that are left out keep their defaults.

    Raises:
        ValueError: if the file is no YAML mapping, or a key or a value is not possible, naming the key.
        FileNotFoundError: if there is no such file.
    """
    return TrainConfig.of(read_options(path))


def read_options(path: Path) -> dict[str, Any]:
    """The values that a file gives, checked one by one.

    Raises:
        ValueError, FileNotFoundError: as `load_config`.
    """
    given = _parse(path)
    try:
        # As JSON, so that a list in the file is as good as a tuple.
        config = _ADAPTER.validate_json(json.dumps(given, default=str))
    except (TypeError, RecursionError) as error:  # of json: a key that is no text
        raise ValueError(f"{path} holds what is no option's value: {error}") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {'; '.join(_describe(fault) for fault in error.errors())}") from None
    return {name: _plain(getattr(config, name)) for name in given}


def dump_config(config: TrainConfig, path: Path) -> None:
    """Write a config, resolved, as a file that repeats the run."""
    resolved = resolve(config)
    text = yaml.safe_dump({name: _writable(getattr(resolved, name)) for name in _NAMES}, sort_keys=False)
    with atomic_path(path) as part:
        part.write_text(f"# setpoint {version('setpoint')}\n{text}", encoding="utf-8")


def config_dict(config: TrainConfig) -> dict[str, Any]:
    """A config as plain values, for JSON."""
    return {name: _writable(getattr(config, name)) for name in _NAMES}


def _parse(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    try:
        given = yaml.load(text, _Loader)
    except _FAULTS as error:
        raise ValueError(f"{path} is no YAML file of options: {' '.join(str(error).split())}") from None
    if given is None:
        raise ValueError(f"{path} is empty; it must hold a mapping such as `sparsity: 0.9`")
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise ValueError(f"{path} must hold a mapping such as `sparsity: 0.9`, not {type(given).__name__}")
    return given


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a YAML file of options, such as the config.yaml in a run's folder")
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"{path} is larger than {_MOST_BYTES} bytes, which no file of options is")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no YAML file of options: it is no text in UTF-8 ({error.reason})") from None


def _describe(fault: Mapping[str, Any]) -> str:
    key = str(fault["loc"][0]) if fault["loc"] else ""
    if fault["type"] == "unexpected_keyword_argument":
        return f"unknown key {key!r}; possible are {', '.join(_NAMES)}"
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    message = str(fault["msg"])
    return f"{key}: {message[:1].lower()}{message[1:]}, not {repr(fault['input'])[:_LISTED]}"


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _writable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else _plain(value)
