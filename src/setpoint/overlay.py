"""Overlays: what hangs on a module for a while, by a class put over its own, and what no copy of it ever sees.

A module under an overlay has a subclass of its class, for three things. A parameter is read through gates in forward
passes. A watcher sees the calls. And a copy or a pickle is a plain module of the plain class, without a trace of this
library, with the gates of the test multiplied into its weights.

What makes a pass a forward pass: a call of a module under an overlay is under way in this thread, so all modules that
hold a gated one are put under overlays too; or autograd is at work, where checkpointing calls again; or the code is
traced by `torch.compile` or `torch.export`. Anywhere else the attribute is the parameter itself, as without gates.
"""

from __future__ import annotations

import copy
import copyreg
import operator
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, wraps
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# Under this name a module holds what hangs on it.
HELD = "setpoint_overlays"


class Gate(Protocol):
    """Multiplies the units of a tensor: in training mode by other numbers than in evaluation."""

    def __call__(self, weight: Tensor, training: bool) -> Tensor:
        """The gated tensor, of the same shape and dtype; the tensor itself if it is of another shape than expected."""


class Overlay:
    """What hangs on a module. This one only marks forward passes.

    No module, and its tensors no buffers, so that whoever walks through the model's meets what was there before.
    """

    @property
    def gates(self) -> Mapping[str, Gate]:
        """What parameters are read through in forward passes, by their names."""
        return {}

    def called(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """What happens before a call of the module. Not told where the call is compiled."""

    def answered(self, module: nn.Module, output: Any) -> None:
        """What happens after it."""


@dataclass(frozen=True)
class _Held:
    overlays: tuple[Overlay, ...] = ()
    gates: Mapping[str, Sequence[Gate]] = field(default_factory=dict)


class _Passes(threading.local):
    """Whether this thread is in a forward pass."""

    def __init__(self) -> None:
        self.inside = False


_passes = _Passes()
# By the class that was put over it, each plain class.
_PLAIN: dict[type[nn.Module], type[nn.Module]] = {}


def hang(module: nn.Module, overlay: Overlay) -> None:
    """Hang an overlay on a module that has no `obstacle`; several may hang there."""
    _hold(module, (*_held(module).overlays, overlay))


def take_off(module: nn.Module, overlay: Overlay) -> None:
    """Take an overlay off a module, if it is there."""
    _hold(module, tuple(o for o in _held(module).overlays if o is not overlay))


def is_gated(module: nn.Module) -> bool:
    """Whether a parameter of the module is read through gates."""
    return bool(_held(module).gates)


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The module's class without what was put over it."""
    return _PLAIN.get(type(module), type(module))


def obstacle(module: nn.Module) -> str | None:
    """Why nothing can hang on a module; None if something can."""
    if isinstance(module, torch.jit.ScriptModule):
        return f"{type(module).__name__} is compiled by TorchScript, which reads its parameters by itself"
    try:
        _put_over(plain_class(module), ())  # type: ignore[arg-type]
    except ValueError as error:
        return str(error)
    return None


_NOTHING = _Held()


def _held(module: nn.Module) -> _Held:
    held: _Held = vars(module).get(HELD, _NOTHING)
    return held


def _hold(module: nn.Module, overlays: tuple[Overlay, ...]) -> None:
    plain = plain_class(module)
    gates: dict[str, Sequence[Gate]] = {}
    for overlay in overlays:
        gates |= {name: (*gates.get(name, ()), gate) for name, gate in overlay.gates.items()}
    if overlays:
        _change_class(module, _put_over(plain, tuple(sorted(gates))))  # type: ignore[arg-type]
        vars(module)[HELD] = _Held(overlays, gates)
    elif vars(module).pop(HELD, None) is not None and type(module) in _PLAIN:
        # Where something else has put a class of its own over this one, it stays, and does nothing any more.
        _change_class(module, plain)


def _change_class(module: nn.Module, cls: type[nn.Module]) -> None:
    object.__setattr__(module, "__class__", cls)


@cache
def _put_over(plain: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """A subclass of a class that reads so many parameters through gates."""
    body: dict[str, Any] = {name: property(_reader(name), *_writers(name)) for name in names} | {
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
        "forward": _marking(plain, "forward", told=False),
        # All of a call, with the module's hooks.
        "_call_impl": _marking(plain, "_call_impl", told=True),
        "__copy__": lambda module: copy.copy(_plain(module)),
        "__reduce_ex__": _reduce,
    }
    if hasattr(plain, "__deepcopy__"):
        # Only then: what wraps a module and passes it questions on would be copied as the module.
        body["__deepcopy__"] = _deepcopy
    # A class may enter its subclasses somewhere, or ask something of them.
    minds = any("__init_subclass__" in vars(base) for base in plain.__mro__ if base is not object)
    bases = (type("Quiet", (), {"__init_subclass__": classmethod(lambda cls: None)}), plain) if minds else (plain,)
    try:
        made = types.new_class(f"Gated{plain.__name__}", bases, exec_body=lambda space: space.update(body))
    except Exception as error:  # its metaclass may do anything
        raise ValueError(f"class {plain.__name__} lets no class be derived from it ({error})") from error
    made.__name__ = f"Gated{plain.__name__}" if names else plain.__name__
    _PLAIN[made] = plain
    return made


def _marking(plain: type[nn.Module], name: str, *, told: bool) -> Callable[..., Any]:
    """A method of a class that marks a forward pass, and tells the overlays of it where it is not compiled."""

    @wraps(getattr(plain, name))
    def marking(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        method = getattr(plain, name)
        if torch.compiler.is_exporting():
            return method(module, *args, **kwargs)
        overlays = _held(module).overlays if told and not torch.compiler.is_compiling() else ()
        # Also where it is compiled: there may be breaks, between which the code runs as it is.
        before, _passes.inside = _passes.inside, True
        try:
            for overlay in overlays:
                overlay.called(module, args)
            output = method(module, *args, **kwargs)
            for overlay in overlays:
                overlay.answered(module, output)
            return output
        finally:
            _passes.inside = before

    return marking


def _reader(name: str) -> Callable[[nn.Module], Any]:
    def read(module: nn.Module) -> Any:
        # In the replicas of DataParallel, tensors stand in for the parameters.
        places = module._parameters if name in module._parameters else vars(module)
        if name not in places:
            raise AttributeError(name)
        tensor = places[name]
        if tensor is None or not _in_forward_pass():
            return tensor
        for gate in _held(module).gates.get(name, ()):
            tensor = gate(tensor, module.training)
        return tensor

    return read


def _writers(name: str) -> tuple[Callable[[nn.Module, Any], None], Callable[[nn.Module], None]]:
    """How a tensor that is no parameter is set under a parameter's name, and taken away."""

    def write(module: nn.Module, value: Any) -> None:
        vars(module)[name] = value

    def delete(module: nn.Module) -> None:
        if vars(module).pop(name, None) is None:
            raise AttributeError(name)

    return write, delete


def _in_forward_pass() -> bool:
    return torch.compiler.is_compiling() or _passes.inside or torch._C._current_graph_task_id() != -1


# Copies


def _without_overlays(module: nn.Module) -> nn.Module:
    """The same module in its plain class: a new object with the same attributes."""
    plain = plain_class(module)
    twin: nn.Module = object.__new__(plain)
    vars(twin).update({name: value for name, value in vars(module).items() if name != HELD})
    for slot in copyreg._slotnames(plain):  # type: ignore[attr-defined]
        if hasattr(module, slot):
            setattr(twin, slot, getattr(module, slot))
    return twin


@dataclass(frozen=True, eq=False)
class _Multiplied:
    """A parameter on its way into a copy or a pickle, where it comes with its gates multiplied in."""

    parameter: nn.Parameter
    gates: Sequence[Gate]

    @torch.no_grad()
    def new(self) -> nn.Parameter:
        return type(self.parameter)(self._tested(self.parameter), self.parameter.requires_grad)

    @torch.no_grad()
    def into(self, copied: Any) -> None:
        """Multiply what was copied where it is, so that all that is copied together refers to the same parameter."""
        if isinstance(copied, Tensor) and copied is not self.parameter:
            copied.copy_(self._tested(copied))

    def _tested(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        for gate in self.gates:
            tensor = gate(tensor, False)
        return tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        copied = copy.deepcopy(self.parameter, memo)
        self.into(copied)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The parameter itself, which what is pickled along with it refers to as well, such as an optimizer; when it is
        # read, it is given its new values. Not in place: between processes its memory may be shared.
        put = _Call(setattr, (self.parameter, "data", self._tested(self.parameter)))
        return operator.getitem, ([self.parameter, put], 0)


@dataclass(frozen=True, eq=False)
class _Call:
    """In a pickle, a call that is made when it is read."""

    function: Callable[..., Any]
    args: tuple[Any, ...]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.function, self.args


def _multiplied(module: nn.Module) -> dict[str, _Multiplied]:
    found = {name: (module._parameters.get(name), gates) for name, gates in _held(module).gates.items()}
    return {name: _Multiplied(p, gates) for name, (p, gates) in found.items() if isinstance(p, nn.Parameter)}


def _plain(module: nn.Module) -> nn.Module:
    """The same with gates multiplied into new parameters."""
    twin = _without_overlays(module)
    new = {name: multiplied.new() for name, multiplied in _multiplied(module).items()}
    vars(twin)["_parameters"] = {**twin._parameters, **new}
    return twin


def _reduce(module: nn.Module, protocol: Any) -> Any:
    twin = _plain(module)
    # By a protocol in which the class may differ from the object's.
    reduced = twin.__reduce_ex__(1)
    state = reduced[2] if isinstance(reduced, tuple) and len(reduced) > 2 else None
    if isinstance(state, dict) and state.get("_parameters") is twin._parameters:
        state["_parameters"] = {**twin._parameters, **_multiplied(module)}
    return reduced


def _deepcopy(module: nn.Module, memo: dict[Any, Any]) -> Any:
    key = (HELD, id(module))
    if key in memo:
        # In a circle of references, the copy that is being made.
        return copy.deepcopy(memo[key], memo)
    memo[key] = _without_overlays(module)
    copied = copy.deepcopy(memo[key], memo)
    for name, multiplied in _multiplied(module).items():
        multiplied.into(getattr(copied, "_parameters", {}).get(name))
    return copied
