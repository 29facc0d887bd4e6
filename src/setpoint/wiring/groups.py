"""From axes to groups of units: names, kinds, slices, and the reasons for what is pinned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from setpoint.wiring.axes import Axis
from setpoint.wiring.calls import Role, Use
from setpoint.wiring.layouts import Layout
from setpoint.wiring.modules import HEADS, SHARED_HEADS
from setpoint.wiring.rules.recurrent import RECURRENT
from setpoint.wiring.settle import Key
from setpoint.wiring.walk import Walk
from setpoint.wiring.wiring import Attribute, Group, Kind, Pin, Slice, Wiring

_PRODUCTS = {"linear", "addmm", "matmul", "mm", "bmm", "baddbmm", "einsum", "bilinear"}
_EMBEDDINGS = {"embedding", "embedding_bag"}
_ROLES: tuple[Role, ...] = ("produces", "consumes", "scales")


def assemble(model: nn.Module, walk: Walk, followed: Mapping[Key, Axis]) -> Wiring:
    """Put together what a walk found.

    Args:
        model: for the names of its modules.
        walk: settled.
        followed: the axes whose sizes attributes have.
    """
    uses = _uses_of_atoms(walk.uses)
    free = [atom for atom in uses if atom.size > 1 and not atom.pins]
    free.sort(key=lambda atom: _first(uses[atom]).order)
    names = _names(free, uses)
    layouts = {name: tuple(Layout.of(a, names) for a in value.axes) for name, value in walk.tensors.items()}
    heads = {atom for axis, _ in walk.heads for atom in axis.atoms()}
    mixed = {atom for axis in walk.mixed for atom in axis.atoms()}
    places = _places(layouts)
    groups = []
    for atom, name in names.items():
        kind: Kind = "head" if atom in heads else "other" if atom in mixed else _kind(uses[atom])
        slices = tuple(_slices(walk, places.get(name, ()), atom, name, uses[atom]))
        groups.append(Group(name, atom.size, slices, kind))
    followed = {**_head_counts(model, walk), **followed}
    averaged = {atom for axis in walk.averaged for atom in axis.atoms()}
    inexact = frozenset(name for atom, name in names.items() if atom in averaged)
    attributes = tuple(a for a in (Attribute(*k, Layout.of(x, names)) for k, x in followed.items()) if a.layout.groups)
    return Wiring(tuple(groups), tuple(_pins(walk)), attributes, layouts, walk.aliases, inexact)


def _head_counts(model: nn.Module, walk: Walk) -> dict[Key, Axis]:
    """Attributes that, by their names, tell how many heads an attention module has, whether or not it reads them."""
    counts: dict[Key, Axis] = {}
    modules = dict(model.named_modules())
    for axis, path in walk.heads:
        attributes = vars(modules[path]) if path in modules else {}
        for names, of in ((HEADS, axis), (SHARED_HEADS, axis.factors[0] if axis.factors else axis)):
            counts |= {(path, n, None): of for n in names if n in attributes and attributes[n] == of.size}
    return counts


def _uses_of_atoms(uses: Sequence[Use]) -> dict[Axis, list[Use]]:
    found: dict[Axis, list[Use]] = {}
    for use in uses:
        for atom in dict.fromkeys(use.axis.atoms()):
            found.setdefault(atom, []).append(use)
    return found


def _first(uses: Sequence[Use]) -> Use:
    return min(uses, key=lambda use: (_ROLES.index(use.role), use.order))


def _names(free: Sequence[Axis], uses: Mapping[Axis, Sequence[Use]]) -> dict[Axis, str]:
    """A name for each free axis: of the module that makes its values first, or of the parameter that is no module's."""
    names: dict[Axis, str] = {}
    taken: dict[str, int] = {}
    for atom in free:
        tensor = _first(uses[atom]).tensors[0]
        path, _, leaf = tensor.rpartition(".")
        name = path if leaf.startswith(("weight", "bias")) and path else tensor
        # A submodule that was compiled on its own keeps its name.
        name = f"{name}.".replace("_orig_mod.", "").removesuffix(".") or tensor
        taken[name] = taken.get(name, 0) + 1
        names[atom] = name if taken[name] == 1 else f"{name}#{taken[name]}"
    return names


def _kind(uses: Sequence[Use]) -> Kind:
    makers = [use for use in uses if use.role == "produces"]
    readers = [use for use in uses if use.role == "consumes"]
    operators = {use.operator for use in makers}
    if any(operator.startswith("conv") for operator in operators):
        return "channel"
    if not operators & (_PRODUCTS | RECURRENT | _EMBEDDINGS):
        return "other"
    direct = operators <= _PRODUCTS | RECURRENT | {"add"} and bool(readers)
    # A layer may be called again, as cells are at every step: what counts is where each begins.
    begun = {tensor: m.order for m in reversed(makers) for tensor in m.tensors}
    if direct and max(begun.values()) < min(r.order for r in readers):
        return "neuron"
    return "hidden"


def _places(layouts: Mapping[str, tuple[Layout, ...]]) -> dict[str, list[tuple[str, int, Layout]]]:
    """By group: tensors, axes and how these are made."""
    places: dict[str, list[tuple[str, int, Layout]]] = {}
    for tensor, axes in layouts.items():
        for axis, layout in enumerate(axes):
            for group in layout.groups:
                places.setdefault(group, []).append((tensor, axis, layout))
    return places


def _slices(
    walk: Walk, places: Sequence[tuple[str, int, Layout]], atom: Axis, name: str, uses: Sequence[Use]
) -> Iterator[Slice]:
    by_tensor: dict[str, list[Use]] = {}
    for use in uses:
        for tensor in use.tensors:
            by_tensor.setdefault(tensor, []).append(use)
    for tensor, axis, layout in places:
        index = layout.index(name)
        for role in _roles(by_tensor.get(tensor, []), walk.tensors[tensor].axes, axis, atom):
            yield Slice(tensor, axis, index, role)


def _roles(uses: Sequence[Use], axes: Sequence[Axis], axis: int, atom: Axis) -> list[Role]:
    """What is done with one axis of a tensor, which may hold the same units on another axis as well."""
    others = {id(a) for i, a in enumerate(axes) if i != axis and atom in a.atoms()}
    if others:
        exact = [use for use in uses if use.axis is axes[axis]]
        uses = exact or [use for use in uses if id(use.axis) not in others]
    roles = {use.role for use in uses}
    return [role for role in _ROLES if role in roles] or ["scales"]


def _pins(walk: Walk) -> Iterator[Pin]:
    for tensor, value in walk.tensors.items():
        for axis, variable in enumerate(value.axes):
            reasons: dict[str, str] = {}
            for atom in variable.atoms():
                if atom.size > 1 and atom.pins:
                    reason, module = next(iter(atom.pins.items()))
                    reasons.setdefault(reason, module)
            for reason, module in reasons.items():
                yield Pin(tensor, axis, module, reason)
