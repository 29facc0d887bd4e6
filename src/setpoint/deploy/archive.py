"""Save and load a model with many zeros in one small safetensors file.

Each tensor is stored in whichever encoding takes the fewest bytes (see `setpoint.deploy.packing` for their sizes), and
comes back bit for bit. Dense tensors keep their names in the file; the encoded ones appear to other readers of
safetensors as ``<name>#values``, ``<name>#positions``, ``<name>#axes`` and ``<name>#signs``.

A file of a model also says how to make the model (`setpoint.deploy.skeleton`), in its metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, overload

import torch
from torch import Tensor, nn

from setpoint.claims import holders
from setpoint.deploy.container import ArchiveError, read_container, write_container
from setpoint.deploy.index import (
    Entry,
    check_size,
    decode_state,
    describe,
    dump_index,
    encode_state,
    memory,
    padded,
    parse_index,
    unstorable,
)
from setpoint.deploy.names import ObstacleError
from setpoint.deploy.skeleton import describe_model, dump_skeleton, parse_skeleton, rebuild_model
from setpoint.deploy.words import to_words
from setpoint.units import plain_name, unwrap

Model = TypeVar("Model", bound=nn.Module)

_LISTED = 8


def save(
    model: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a model to one safetensors file, its zeros left out: its weights, and what it takes to make it again.

    The file appears whole or not at all: a save that fails or is killed leaves an earlier file as it was. The same
    state gives the same checksum, and the same bytes up to the order of the file's metadata. Tensors that are the same
    memory seen the same way (tied weights) are stored once.

    Args:
        model: The model, or a state dict. A compiled or data-parallel model is saved as the model inside; a state dict
            under the names it has. What keeps a model from being made again (a lambda among its attributes, a forward
            hook) does not keep it from being saved: `load_model` tells of it.
        path: Of the file, in a folder that exists.
        metadata: Strings to keep with the model, for `read_metadata`.

    Returns:
        The path.

    Raises:
        ArchiveError: If an entry is no plain tensor with data: sparse, quantised, sharded, on the meta device.
        FileNotFoundError: If the folder does not exist.
        OSError: If the file cannot be written, with a sentence that says why.
        TypeError: If it is neither a model nor a state dict, or if the metadata are not strings.
    """
    path = Path(path)
    if not isinstance(model, nn.Module | Mapping):
        raise TypeError(f"model must be a torch.nn.Module or a state dict, not {type(model).__name__}")
    if isinstance(model, nn.Module):
        for run in holders(unwrap(model)):
            run.check("the model was saved")
    state = _state(unwrap(model)) if isinstance(model, nn.Module) else dict(model)
    texts = {"metadata": json.dumps(_check_strings(metadata or {}))}
    for name, tensor in state.items():
        _check_storable(name, tensor, path)
    extras: dict[str, Tensor] = {}
    if isinstance(model, nn.Module):
        skeleton, extras = describe_model(unwrap(model), state)
        texts["skeleton"] = dump_skeleton(skeleton)
    index, stored = encode_state({**state, **extras})
    for key, names in (("index", state), ("extras", extras)):
        if names or key == "index":
            texts[key] = dump_index({name: index[name] for name in names})
    write_container(path, padded(index, stored), texts)
    return path


@overload
def load(
    path: str | os.PathLike[str], model: None = None, *, device: str | torch.device = "cpu"
) -> dict[str, Tensor]: ...


@overload
def load(path: str | os.PathLike[str], model: Model, *, device: str | torch.device = "cpu") -> Model: ...


def load(
    path: str | os.PathLike[str], model: Model | None = None, *, device: str | torch.device = "cpu"
) -> dict[str, Tensor] | Model:
    """Read what `save` wrote, into a model or as a state dict.

    The whole file, and its fit to the model, is checked before the first entry of the model changes, and before
    anything is decoded. Without a model, a file of n bytes may come to 256 MiB + 256 n and no more,
    which `save` sees to.

    Args:
        path: Of the file.
        model: To load into, in place: its parameters stay the objects that its optimizer knows. Names, shapes and
            dtypes must be those of the file. It may be compiled or data-parallel.
        device: Of the state dict's tensors. A model keeps its own.

    Returns:
        The model, or without one the state dict, in which tensors that were saved as one are one.

    Raises:
        ArchiveError: If the file is truncated, altered, not written by `save`, or does not fit the model.
        FileNotFoundError: If there is no such file.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module to load into, or left out, not {type(model).__name__}")
    if model is None:
        return _load_alone(Path(path), torch.device(device))
    inner = unwrap(model)
    state = _load_fitting(Path(path), inner)
    inner.load_state_dict({name: state[plain_name(name)] for name in inner.state_dict()})
    return model


def load_model(
    path: str | os.PathLike[str], *, trusted: str | Sequence[str] = (), device: str | torch.device = "cpu"
) -> nn.Module:
    """Make the model that `save` wrote, weights and all, without the code that first built it.

    Each module is made from its class, without its constructor, and given the attributes it had. So the code of the
    classes must be there: in modules that are imported already, in torch.nn, in setpoint, or in a package that is named
    as trusted, which is then imported. Nothing else is imported, and nothing that the file names is called: of
    functions, it can name those of torch on tensors and those of the packages that the model's classes are from. What
    the model does once you call it is up to these packages.

    As with pickle, attributes that a newer version of a class sets in its constructor are not there.

    Args:
        path: Of the file, written from a model, not from a state dict.
        trusted: Packages, or modules, that may be imported for the sake of the model's classes.
        device: To put the weights on.

    Returns:
        The model, in the modes in which its modules were. What was shared is shared.

    Raises:
        ArchiveError: If the file is truncated, altered, or not written by `save`; if the model could not be described,
            naming what stood in the way; or if its code is not imported and not trusted.
        FileNotFoundError: If there is no such file.
    """
    trusted = (trusted,) if isinstance(trusted, str) else tuple(trusted)
    with _reading(Path(path)):
        container = read_container(Path(path))
        if "skeleton" not in container.metadata:
            raise ArchiveError(
                f"{path} holds a state dict, of no model in particular; save the model to load it as one"
            )
        indexes = [parse_index(container.metadata.get(key, "{}")) for key in ("index", "extras")]
        index = {name: entry for part in indexes for name, entry in part.items()}
        check_size(index, container)
        stored = decode_state(container, index, torch.device(device))
    try:
        return rebuild_model(parse_skeleton(container.metadata["skeleton"]), stored, trusted)
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error}") from error
    except ObstacleError as error:
        raise ArchiveError(f"{path} cannot be made into a model: it asks for {error}") from error
    except Exception as error:  # a skeleton may hold anything, and what is wrong shows where it is put to use
        raise ArchiveError(f"{path} cannot be made into a model: {type(error).__name__}: {error}") from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The strings that were given to `save`, of a file whose checksum is right.

    Raises:
        ArchiveError: If the file is truncated, altered or not written by `save`.
        FileNotFoundError: If there is no such file.
    """
    with _reading(Path(path)):
        return _check_strings(json.loads(read_container(Path(path)).metadata["metadata"]))


def _load_alone(path: Path, device: torch.device) -> dict[str, Tensor]:
    with _reading(path):
        container = read_container(path)
        index = parse_index(container.metadata["index"])
        check_size(index, container)
        return decode_state(container, index, device)


def _load_fitting(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """The state in a file, which takes what the model does: the fit is checked before anything is decoded."""
    with _reading(path):
        container = read_container(path)
        index = parse_index(container.metadata["index"])
        _check_fit(index, model, path)
        state = decode_state(container, index, torch.device("cpu"))
        _check_ties(state, model, path)
        return state


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tell whatever a file's content leads to as an error of the file: its checksum says nothing of who wrote it."""
    try:
        yield
    except (ArchiveError, OSError):
        raise
    except Exception as error:
        raise ArchiveError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {plain_name(name): tensor for name, tensor in model.state_dict().items()}


def _check_strings(metadata: Mapping[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata must map str to str, found {key!r}: {value!r}")
    return dict(metadata)


def _check_storable(name: str, tensor: object, path: Path) -> None:
    found = unstorable(tensor)
    if found is not None:
        raise ArchiveError(f"cannot save {name!r} to {path}: expected a plain tensor, found {found}")


def _check_fit(index: Mapping[str, Entry], model: nn.Module, path: Path) -> None:
    """Raise unless the model has the names, shapes and dtypes of the index, and memory to load into."""
    own = _state(model)
    common = [name for name in own if name in index]
    found = {name: f"{_describe(own[name])} in the model, {index[name]} in the file" for name in common}
    problems = {
        "not in the file": [repr(name) for name in own if name not in index],
        "not in the model": [repr(name) for name in index if name not in own],
        "different": [f"{name!r} ({found[name]})" for name in common if _describe(own[name]) != str(index[name])],
        "on the meta device, use to_empty first": [
            repr(name) for name in common if getattr(own[name], "is_meta", False)
        ],
    }
    if any(problems.values()):
        text = "; ".join(f"{problem}: {_enumerate(names)}" for problem, names in problems.items() if names)
        raise ArchiveError(f"{path} does not fit {type(model).__name__}: {text}")


def _check_ties(state: Mapping[str, Tensor], model: nn.Module, path: Path) -> None:
    """Raise if two tensors that differ in the file are one in the model, where the last would win."""
    owners: dict[tuple[object, ...], str] = {}
    for name, tensor in _state(model).items():
        owner = owners.setdefault(memory(tensor), name)
        same = state[owner] is state[name] or (to_words(state[owner]) == to_words(state[name])).all()
        if not same:
            raise ArchiveError(
                f"{path} does not fit {type(model).__name__}: {owner!r} and {name!r} share one tensor in the model, "
                "and differ in the file"
            )


def _describe(tensor: object) -> str:
    return str(describe(tensor)) if isinstance(tensor, Tensor) else type(tensor).__name__


def _enumerate(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more
