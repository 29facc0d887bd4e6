"""Files that lie and whose checksums are right: valid ones, changed in their structure."""

from __future__ import annotations

import copy
import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import nn

import setpoint
from setpoint.deploy import container, skeleton

Json = Any

NUMBERS = [
    -1,
    0,
    1,
    2,
    7,
    255,
    2**31,
    2**40,
    2**63 - 1,
    2**63,
    10**30,
    -(2**63),
    0.5,
    1e308,
    float("nan"),
    float("inf"),
]
TEXTS = ["", "x", "values", "dense", "gaps", "bitmask", "float32", "F32", "BOOL", "complex128", "load", "#values", "\0"]
WHOLES = ["", "x", "{}", "[]", "null", "NaN", "[" * 100_000, '{"a":' * 100_000, "1" * 5000]
OTHERS = [None, True, False, [], {}, [[]], {"": 0}, {"tuple": [1]}, {"tensor": 0}, {"module": 0}, {"object": 0}]


@dataclass
class Config:
    width: int = 4
    names: dict[int, str] = field(default_factory=lambda: {1: "a", 2: "b"})


class Net(nn.Module):
    """Tensors in every encoding and of many dtypes, and attributes of every kind."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(1, 3, 3).to(memory_format=torch.channels_last)
        self.fc = nn.Linear(20, 30)
        self.tied = nn.Linear(20, 30)
        self.tied.weight = self.fc.weight
        self.config, self.act, self.sizes = Config(), torch.tanh, {"a": (1, 2), 3: {4}, "dtype": torch.bfloat16}
        drawn = torch.rand(30, 40, generator=generator)
        kept = {"gaps": drawn < 0.03, "bits": drawn < 0.4, "box": (drawn[:, :1] < 0.2).expand(30, 40)}
        for name, mask in kept.items():
            self.register_buffer(name, torch.where(mask, drawn, 0.0))
        self.register_buffer("signs", torch.where(drawn < 0.2, drawn, torch.where(drawn < 0.6, -0.0, 0.0)))
        self.register_buffer("mask", drawn < 0.5)
        self.register_buffer("wide", torch.where(drawn < 0.1, drawn, 0.0).to(torch.complex128))
        self.register_buffer("short", torch.where(drawn < 0.1, 1000 * drawn, 0.0).to(torch.uint16))
        self.register_buffer("passing", drawn[:4].clone(), persistent=False)
        with torch.no_grad():
            self.fc.weight.mul_(torch.rand(30, 20, generator=generator) < 0.1)


def forge(data: bytes, change: Callable[[dict[str, Json]], None], payload: bytes | None = None) -> bytes:
    """A file with its header changed, and a checksum to that.

    Args:
        data: of a file that `setpoint.save` wrote.
        change: of what the header says, in place. Under "index", "extras", "metadata" and "skeleton" stand their values
            rather than texts; a text put there is taken as it is.
        payload: the bytes of the tensors, if they change too.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    about = header.get("__metadata__")
    parsed = {key: json.loads(about[key]) for key in ("index", "extras", "metadata")}
    parsed["skeleton"] = skeleton.parse_skeleton(about["skeleton"])
    whole = {"header": header, **parsed}
    change(whole)
    header = whole.pop("header")
    if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
        for key, value in whole.items():
            text = skeleton.dump_skeleton(value) if key == "skeleton" else json.dumps(value)
            header["__metadata__"][key] = value if isinstance(value, str) else text
    return seal(header, data[end:] if payload is None else payload)


def seal(header: Json, payload: bytes) -> bytes:
    """A file with the checksum of its content, if it has one that can be read at all."""
    try:
        about = {key: value for key, value in header["__metadata__"].items() if key != "checksum"}
        header["__metadata__"]["checksum"] = container._checksum(safetensors.load(_join(header, payload)), about)
    except Exception:
        pass
    return _join(header, payload)


def _join(header: Json, payload: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + payload


def mutate(data: bytes, draw: random.Random) -> bytes:
    """A file with some places of its structure changed at random."""
    end = 8 + int.from_bytes(data[:8], "little")
    payload = bytearray(data[end:])
    if draw.random() < 0.2:
        for _ in range(draw.randint(1, 20)):
            payload[draw.randrange(len(payload))] = draw.choice([0, 255, draw.randrange(256)])

    def change(whole: dict[str, Json]) -> None:
        part = draw.choice(["header", "index", "index", "extras", "metadata", "skeleton", "skeleton"])
        if draw.random() < 0.05:
            whole[part] = draw.choice(
                ["", "x", "{}", "[]", "null", "[" * 100_000, '{"a":' * 100_000, "1" * 5000, "NaN"]
            )
            return
        for _ in range(draw.randint(1, 3)):
            _mutate_place(whole, part, draw)

    return forge(data, change, bytes(payload))


def _mutate_place(whole: dict[str, Json], part: str, draw: random.Random) -> None:
    places = [(whole, part), *_places(whole[part])]
    holder, key = draw.choice(places)
    value, way = holder[key], draw.randrange(9)
    if way == 0 and holder is not whole:
        del holder[key]
    elif way == 1:
        holder[key] = draw.choice(NUMBERS)
    elif way == 2:
        holder[key] = draw.choice(TEXTS)
    elif way == 3:
        holder[key] = copy.deepcopy(draw.choice(OTHERS))
    elif way == 4:
        other, at = draw.choice(places)
        holder[key] = copy.deepcopy(other[at])
    elif way == 5:
        holder[key] = _nested(draw.choice([10, 100, 250]), draw.choice([list, dict]), value)
    elif way == 6 and isinstance(holder, dict) and holder is not whole:
        holder[draw.choice([*TEXTS, *holder])] = holder.pop(key)
    elif way == 7 and type(value) is int:
        holder[key] = draw.choice([value + 1, value - 1, value * 1000, -value, 1 << value % 63])
    elif isinstance(value, list):
        holder[key] = value * draw.choice([2, 100]) if draw.random() < 0.5 else value[::-1]


def _nested(depth: int, kind: type, value: Json) -> Json:
    for _ in range(depth):
        value = [value] if kind is list else {"tuple": value}
    return value


def _places(value: Json) -> Iterator[tuple[Json, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        yield value, key
        yield from _places(entry)


class SlowError(BaseException):
    """Reading took longer than it was given."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Break off what takes longer."""

    def stop(*_: object) -> None:
        raise SlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def readers(path: Path) -> dict[str, Callable[[], object]]:
    """Every way to read a file."""
    return {
        "load": lambda: setpoint.load(path),
        "load into a model": lambda: setpoint.load(path, Net()),
        "load_model": lambda: setpoint.load_model(path),
        "read_metadata": lambda: setpoint.deploy.read_metadata(path),
    }
