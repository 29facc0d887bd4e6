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

from setpoint.recipes.config import TrainConfig
from setpoint.recipes.defaults import resolve
from setpoint.writing import atomic_path

_ADAPTER = TypeAdapter(checked(TrainConfig, frozen=True, config=ConfigDict(extra="forbid")))
_NAMES = [f.name for f in fields(TrainConfig)]


class _Loader(yaml.SafeLoader):
    """Numbers as in YAML 1.2. In 1.1, PyYAML's, `2:4` is the number 124 (base 60), and `2e-3` is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, rule) for tag, rule in rules if tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


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
    try:
        given = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML file: {' '.join(str(error).split())}") from None
    given = {} if given is None else given
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise ValueError(f"{path} must hold a mapping such as `sparsity: 0.9`, not {type(given).__name__}")
    return given


def _describe(fault: Mapping[str, Any]) -> str:
    key = str(fault["loc"][0]) if fault["loc"] else ""
    if fault["type"] == "unexpected_keyword_argument":
        return f"unknown key {key!r}; possible are {', '.join(_NAMES)}"
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    message = str(fault["msg"])
    return f"{key}: {message[:1].lower()}{message[1:]}, not {fault['input']!r}"


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _writable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else _plain(value)
