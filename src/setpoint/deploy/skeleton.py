"""A model without its weights, as text: what it takes to make the model again where nobody built it.

The *skeleton* is the tree of modules: of each its class by name, its attributes, and its parameters, buffers and
submodules by the numbers of entries in tables, so that what is shared stays shared. To rebuild it, each module is made
without its constructor and given what it had; see `setpoint.deploy.names` for what a skeleton may name.
"""

from __future__ import annotations

import base64
import functools
import json
import zlib
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from setpoint.deploy.container import ArchiveError
from setpoint.deploy.layouts import is_dense, place, usual_strides
from setpoint.deploy.names import ObstacleError, check_module_class, check_value_class, find_all, package_of
from setpoint.deploy.states import HOOKS, KEPT, fill, state_of
from setpoint.deploy.stored import Stored
from setpoint.deploy.tables import entry_of
from setpoint.deploy.values import Json, Reader, Writer
from setpoint.overlay import HELD, is_gated, plain_class
from setpoint.wiring.stand_ins import FUNCTIONS, TOLD, revive

# What a skeleton may come to when it is decompressed: this many bytes, this many more for each byte of its text, and
# never more than the last. Modules take a hundred times the memory of their lines.
_FREE_BYTES, _BYTES_PER_BYTE, _MOST_BYTES = 1 << 17, 2, 1 << 28
_LISTED = 5
# What torch keeps of a module before any constructor of its own class has run: what makes it, or what it is.
_BLANK = {
    name: (type(value) if isinstance(value, (dict, set)) else None, value) for name, value in vars(nn.Module()).items()
}


def describe_model(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[Json, dict[str, Tensor]]:
    """The skeleton of a model.

    Args:
        model: Unwrapped.
        state: Its state dict.

    Returns:
        The skeleton, and by name the tensors that it needs and that the state dict does not hold: buffers that are not
        persistent, and tensors that are plain attributes. What cannot be described has a skeleton of obstacles alone.
    """
    writer = Writer({package_of(type(m).__module__) for m in model.modules()} - {"torch"})
    stored = Stored(state)
    tables: dict[str, list[Json]] = {"modules": [], "objects": [], "tensors": []}
    writer.modules.number(_inner(model), "")
    # The queue grows on the way.
    obstacles = [_describe(entry, path, writer, stored, tables) for entry, path in writer.queue]
    if any(obstacles):
        return {"obstacles": [obstacle for obstacle in obstacles if obstacle]}, {}
    return {"names": list(writer.names), **tables}, stored.extras


def rebuild_model(skeleton: Json, stored: Mapping[str, Tensor], trusted: Collection[str]) -> nn.Module:
    """The model of a skeleton.

    Args:
        skeleton: That `describe_model` made.
        stored: Tensors by name, those of the state dict and those beside it.
        trusted: Packages that may be imported.

    Raises:
        ArchiveError: If the model could not be described, its code is not to be had, or the skeleton is malformed.
    """
    if "obstacles" in skeleton:
        listed = "; ".join(skeleton["obstacles"][:_LISTED])
        more = f"; and {len(skeleton['obstacles']) - _LISTED} more" if len(skeleton["obstacles"]) > _LISTED else ""
        raise ArchiveError(
            f"the model could not be described when it was saved, only its weights are there: {listed}{more}. Build "
            "the model, and load them into it: setpoint.load(path, model)"
        )
    _check_tables(skeleton)
    found = find_all(skeleton["names"], trusted)
    # Once for each class, by its number: of what is found nothing is asked, such as whether it is equal to another.
    class_at = functools.lru_cache(None, typed=True)(lambda number: check_module_class(entry_of(found, number)))
    modules = [_new_module(class_at(about["class"])) for about in skeleton["modules"]]
    packages = {package_of(type(module).__module__) for module in modules} - {"torch"}
    classes = [check_value_class(entry_of(found, about["class"]), packages) for about in skeleton["objects"]]
    objects: list[object] = [cls.__new__(cls) for cls in classes]
    placed = _place_all(skeleton["tensors"], stored)
    tensors = [_read_tensor(about, placed) for about in skeleton["tensors"]]
    reader = Reader(packages, found, modules, tensors, objects)
    for tensor, about in zip(tensors, skeleton["tensors"]):
        vars(tensor).update(reader.attributes(about.get("attributes", {})))
    for value, about in zip(objects, skeleton["objects"]):
        fill(value, reader.attributes(about["state"]))
    for module, about in zip(modules, skeleton["modules"]):
        _fill_module(module, about, reader)
    _revive_all(modules)
    return modules[0]


def dump_skeleton(skeleton: Json) -> str:
    """A skeleton as text, compressed, and filled up with spaces where it is too uniform for what is read of a text."""
    text = json.dumps(skeleton, separators=(",", ":")).encode()
    packed = base64.b85encode(zlib.compress(text, 9)).decode()
    return packed.ljust(-(-(len(text) - _FREE_BYTES) // _BYTES_PER_BYTE))


def parse_skeleton(text: str) -> Json:
    """The inverse of `dump_skeleton`.

    Raises:
        ValueError: If it is none.
    """
    most = min(_MOST_BYTES, _FREE_BYTES + _BYTES_PER_BYTE * len(text))
    decompressor = zlib.decompressobj()
    try:
        whole = decompressor.decompress(base64.b85decode(text.rstrip(" ")), most)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not decompressor.eof:
        raise ValueError(f"it is cut off, or larger than {most} bytes")
    return json.loads(whole)


# To JSON


def _inner(module: nn.Module) -> nn.Module:
    """A module that was compiled on its own, as it was before."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module


def _describe(entry: object, path: str, writer: Writer, stored: Stored, tables: dict[str, list[Json]]) -> str | None:
    """Write an entry into its table; what stands in the way, if something does."""
    try:
        if isinstance(entry, nn.Module):
            tables["modules"].append(_write_module(writer, entry, path))
        elif isinstance(entry, Tensor):
            tables["tensors"].append(_write_tensor(writer, entry, path, stored))
        else:
            tables["objects"].append(_write_object(writer, entry, path))
    except Exception as error:  # attributes may be anything, and looking at them may run into any error of their own
        where = repr(path) if path else "the model itself"
        reason = str(error) if isinstance(error, ObstacleError) else f"{type(error).__name__}: {error}"
        return f"{where} ({type(entry).__module__}.{type(entry).__qualname__}): {reason}"
    return None


def _write_module(writer: Writer, module: nn.Module, path: str) -> Json:
    if is_gated(module):
        raise ObstacleError("there are gates of a run that is still in its sparsify phase")
    if is_parametrized(module):
        raise ObstacleError(
            "there are parametrizations; torch.nn.utils.parametrize.remove_parametrizations takes them off"
        )
    hooks = [name for name in HOOKS if vars(module).get(name)]
    if hooks:
        raise ObstacleError(f"there are hooks ({', '.join(hooks)})")
    if type(module).get_extra_state is not nn.Module.get_extra_state:
        raise ObstacleError("there is state of its own kind (get_extra_state)")
    about: dict[str, Json] = {"class": _class_of(writer, module)}
    for key in ("parameters", "buffers"):
        held: dict[str, Tensor | None] = vars(module)[f"_{key}"]
        about[key] = {n: None if t is None else writer.tensors.number(t, _join(path, n)) for n, t in held.items()}
    about["transient"] = sorted(module._non_persistent_buffers_set)
    about["children"] = {
        name: None if child is None else writer.modules.number(_inner(child), _join(path, name))
        for name, child in module._modules.items()
    }
    about["training"] = module.training
    left = (KEPT | FUNCTIONS if TOLD in vars(module) else KEPT) | {HELD}
    about["attributes"] = writer.attributes({n: v for n, v in vars(module).items() if n not in left}, path)
    return {key: value for key, value in about.items() if value not in ({}, [])}


def _class_of(writer: Writer, module: nn.Module) -> int:
    try:
        return writer.name(check_module_class(plain_class(module)))
    except ObstacleError as error:
        raise ObstacleError(f"its class is {error}") from error


def _write_object(writer: Writer, value: object, path: str) -> Json:
    return {"class": writer.name(type(value)), "state": writer.attributes(state_of(value), path)}


def _write_tensor(writer: Writer, tensor: Tensor, path: str, stored: Stored) -> Json:
    if type(tensor) not in (Tensor, nn.Parameter):
        raise ObstacleError("it is a tensor of a class of its own")
    if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
        raise ObstacleError("there are hooks on it")
    if tensor.grad_fn is not None:
        raise ObstacleError("it was computed from tensors that require a gradient; detach it")
    about: dict[str, Json] = {"data": stored.name_of(tensor, path)}
    if isinstance(tensor, nn.Parameter):
        about["parameter"] = True
    if tensor.requires_grad:
        about["requires_grad"] = True
    if tensor.stride() != usual_strides(tensor.shape) and is_dense(tensor.shape, tensor.stride()):
        about["strides"] = list(tensor.stride())
    attributes = writer.attributes(vars(tensor), path)
    return {**about, "attributes": attributes} if attributes else about


# From JSON


def _check_tables(skeleton: Json) -> None:
    """Raise unless the entries are those that are written: a shorter one costs as much to make."""
    if not all(isinstance(name, str) for name in skeleton["names"]):
        raise TypeError("a name that is no text")
    needed = {"modules": ("class", "training"), "objects": ("class", "state"), "tensors": ("data",)}
    for table, keys in needed.items():
        for about in skeleton[table]:
            if not all(key in about for key in keys):
                raise LookupError(f"an entry of its {table} has no {' and '.join(keys)}")


def _new_module(cls: type[nn.Module]) -> nn.Module:
    module: nn.Module = object.__new__(cls)
    vars(module).update({name: value if make is None else make() for name, (make, value) in _BLANK.items()})
    return module


def _revive_all(modules: Sequence[nn.Module]) -> None:
    """Give stand-ins their functions; those that say what they answer by one object have them in common."""
    revived: dict[int, nn.Module] = {}
    for module in modules:
        told = vars(module).get(TOLD)
        first = revived.setdefault(id(told), module)
        if first is module:
            revive(module)
        elif told is not None:
            vars(module).update({name: vars(first)[name] for name in FUNCTIONS})


def _fill_module(module: nn.Module, about: Mapping[str, Json], reader: Reader) -> None:
    for key in ("parameters", "buffers"):
        held: dict[str, Tensor | None] = vars(module)[f"_{key}"]
        for name, number in about.get(key, {}).items():
            held[name] = None if number is None else entry_of(reader.tensors, number)
    for name, number in about.get("children", {}).items():
        module._modules[name] = None if number is None else entry_of(reader.modules, number)
    module._non_persistent_buffers_set.update(str(name) for name in about.get("transient", ()))
    attributes = reader.attributes(about.get("attributes", {}))
    if not KEPT.isdisjoint(attributes):
        raise ObstacleError(f"attributes that torch keeps of every module: {', '.join(KEPT & attributes.keys())}")
    vars(module).update(attributes, training=bool(about["training"]))


def _place_all(tensors: Sequence[Mapping[str, Json]], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that are asked for, by name, each placed in memory as it was."""
    strides: dict[str, Json] = {}
    for about in tensors:
        name, asked = about["data"], about.get("strides")
        if strides.setdefault(name, asked) != asked:
            raise ValueError(f"the tensor {name!r} is asked for in two layouts")
    return {name: stored[name] if asked is None else place(stored[name], asked) for name, asked in strides.items()}


def _read_tensor(about: Mapping[str, Json], placed: Mapping[str, Tensor]) -> Tensor:
    data = placed[about["data"]].detach()
    grad = bool(about.get("requires_grad"))
    return nn.Parameter(data, requires_grad=grad) if about.get("parameter") else data.requires_grad_(grad)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
