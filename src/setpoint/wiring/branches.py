"""Residual branches: the f of each x + f(x) in an exported graph, with the weights that are its own.

A branch is a term of a sum that is computed from another term of it, all the values in between being for nothing but
this sum. Taken out, the sum hands on the other terms unchanged. Terms of nested sums (`x + (f(x) + g(x))`) are branches
each on its own where they can be. Where a branch holds others, as a residual stage with a skip of its own does, the
inner ones are taken: units must not overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from setpoint.wiring.calls import module_of
from setpoint.wiring.flow import Flow, paths
from setpoint.wiring.subgraph import Subgraph

_ADD = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


@dataclass(frozen=True, eq=False)
class Found:
    """A branch as the graph shows it.

    Attributes:
        place: the module in whose forward pass the sum is made; empty for the model itself.
        parameters: first names of all that is the branch's own.
        last: those of the map that makes the branch's result: with them zero it is zero, whatever the others are.
        modules: of the modules that do nothing but the branch's work, the outermost that hold parameters; and of each,
            whether what it makes goes nowhere but into others of these.
    """

    place: str
    parameters: tuple[str, ...]
    last: tuple[str, ...]
    modules: Mapping[str, bool]


def find(
    model: nn.Module, program: ExportedProgram, first_names: Mapping[str, str]
) -> tuple[list[Found], dict[str, str]]:
    """Look for the branches of a model.

    Args:
        model: that was exported.
        program: exported.
        first_names: of parameters and buffers, by each of their names.

    Returns:
        The branches in the order in which their results are made; and by name, of a module, why other terms with
        weights of their own, which might have been meant, are none.
    """
    return _Search(model, Flow(program, first_names), first_names).run()


def named(model: nn.Module, found: Sequence[Found]) -> dict[str, Found]:
    """Branches by names: of the module in which the sum is made, or of the heaviest of their own modules.

    The first where that module holds all that is the branch's, and makes no other sum.
    """
    places = [branch.place for branch in found]
    names: dict[str, Found] = {}
    for branch in found:
        alone = branch.place and places.count(branch.place) == 1
        whole = alone and all(path.startswith(f"{branch.place}.") for path in branch.modules)
        names[branch.place if whole else heaviest(model, branch.modules)] = branch
    return names


@dataclass(frozen=True)
class _Term:
    """One term of a sum, which may be a sum itself, and what was computed for nothing else."""

    root: Node
    parent: Node
    node: Node
    others: tuple[Node, ...]
    nodes: frozenset[Node]


class _RefusedError(Exception):
    """Why a term is no branch."""


class _NoSkipError(_RefusedError):
    """It is not beside what it is computed from."""


class _Search:
    def __init__(self, model: nn.Module, flow: Flow, first_names: Mapping[str, str]) -> None:
        self.model, self.flow, self.first_names = model, flow, first_names
        self.read = {name: flow.users(node) for node, name in flow.parameters.items() if node in flow}
        self.made_in: dict[str, set[Node]] = {}
        for node in flow.nodes:
            for path in paths(node):
                self.made_in.setdefault(path, set()).add(node)

    def run(self) -> tuple[list[Found], dict[str, str]]:
        terms = [term for root in self._roots() for term in self._terms(root)]
        taken: set[Node] = set()
        found: dict[Node, Found] = {}
        refused: list[tuple[_Term, str, str]] = []
        for term in sorted(terms, key=lambda t: len(t.nodes)):
            if taken.isdisjoint(term.nodes) and any(not users.isdisjoint(term.nodes) for users in self.read.values()):
                try:
                    branch = self._branch(term)
                except _RefusedError as reason:
                    refused.append((term, self._name(term, reason), str(reason)))
                else:
                    if branch is not None:
                        found[term.node] = branch
                        taken |= term.nodes
        # What goes on inside of a branch that goes as a whole need not be told.
        open_ = [entry for entry in refused if entry[0].root not in taken and entry[0].node not in taken]
        reasons = {name: reason for _, name, reason in reversed(open_)}
        return [found[node] for node in self.flow.nodes if node in found], dict(reversed(reasons.items()))

    # Sums and their terms

    def _roots(self) -> Iterator[Node]:
        """Sums that are no mere part of another sum."""
        for node in self.flow.nodes:
            users = self.flow.users(node)
            if self._is_sum(node) and not (self._is_part(node) and self._is_sum(next(iter(users)))):
                yield node

    def _is_sum(self, node: Node) -> bool:
        return node.op == "call_function" and node.target in _ADD and len(self.flow.inputs(node)) == 2

    def _is_part(self, node: Node) -> bool:
        users = self.flow.users(node)
        return self._is_sum(node) and len(users) == 1 and self.flow.is_for(node, users)

    def _terms(self, root: Node) -> Iterator[_Term]:
        """All terms of a sum, those of sums that are parts of it included."""
        leaves = self._leaves(root)
        waiting = [root]
        for parent in waiting:
            for node in self.flow.inputs(parent):
                under = [node]
                if self._is_part(node):
                    waiting.append(node)
                    under = self._leaves(node)
                others = tuple(leaf for leaf in leaves if leaf not in under)
                if node.op == "call_function" and others:
                    yield _Term(root, parent, node, others, self.flow.only_for(node))

    def _leaves(self, total: Node) -> list[Node]:
        found: list[Node] = []
        for node in self.flow.inputs(total):
            found += self._leaves(node) if self._is_part(node) else [node]
        return found

    # What makes a term a branch

    def _branch(self, term: _Term) -> Found | None:
        """The branch that a term with weights is; None where nobody would take it for one."""
        before = self.flow.ancestors([term.node])
        # Of several, the last: the fewer values lie between, the fewer are for anything else.
        skip = max((n for n in self._summed(term.others) if n in before), key=self.flow.place, default=None)
        if skip is None:
            if self._competes(term, before):
                raise _NoSkipError("nothing would pass it by unchanged: what it is added to is not its own input")
            return None
        shapes = {tuple(n.meta["val"].shape) for n in (skip, term.node, term.root)}
        if len(shapes) > 1:
            raise _RefusedError(f"it has not the shape of what it is added to ({', '.join(map(str, sorted(shapes)))})")
        if not self.flow.is_for(term.node, {term.parent}):
            raise _RefusedError("its result is used elsewhere, too")
        leak = next((n for n in self.flow.between(skip, term.node) if n not in term.nodes), None)
        if leak is not None:
            raise _RefusedError(f"a value inside of it (of {module_of(leak) or 'the model'!r}) is used elsewhere, too")
        own = [name for name, users in self.read.items() if not users.isdisjoint(term.nodes)]
        shared = next((name for name in own if not self.read[name] <= term.nodes), None)
        if shared is not None:
            raise _RefusedError(f"its parameter {shared!r} is used elsewhere, too")
        return self._found(term, own)

    def _summed(self, nodes: Sequence[Node]) -> Iterator[Node]:
        """These, and what they are sums of."""
        waiting = list(nodes)
        for node in waiting:
            yield node
            if self._is_sum(node):
                waiting += [n for n in self.flow.inputs(node) if n not in waiting]

    def _competes(self, term: _Term, before: set[Node]) -> bool:
        """Whether a term and those beside it are computed from the same values, and none from another."""
        beside = [self.flow.ancestors([other]) for other in term.others]
        common = before.intersection(*beside)
        return not any(term.node in nodes for nodes in beside) and any(self.flow.is_activation(n) for n in common)

    def _found(self, term: _Term, own: Sequence[str]) -> Found:
        modules = self._modules(term)
        if not modules:
            raise _RefusedError("its weights are in no modules that do its work alone, and that could be taken out")
        unread = [
            first
            for path in modules
            for name, _ in self.model.get_submodule(path).named_parameters(path)
            if (first := self.first_names[name]) not in self.read
        ]
        branch = Subgraph(self.model, self.flow, term.nodes, term.node)
        parameters = (*own, *dict.fromkeys(unread))
        if not branch.vanishes_without(parameters):
            raise _RefusedError("its result is not zero where all its weights are")
        last = tuple(name for name in own if name in self._last(term))
        if not last or not branch.vanishes_without(last):
            last = parameters
        return Found(module_of(term.parent), parameters, last, modules)

    def _modules(self, term: _Term) -> dict[str, bool]:
        inside = {
            path: None for n in self.flow.ordered(term.nodes) for path in paths(n) if self.made_in[path] <= term.nodes
        }
        outermost = [
            path
            for path in inside
            if not any(path.startswith(f"{other}.") for other in inside)
            and next(self.model.get_submodule(path).parameters(), None) is not None
        ]
        work = set().union(*(self.made_in[path] for path in outermost))
        return {path: self._users_outside(path) <= work for path in outermost}

    def _users_outside(self, path: str) -> set[Node]:
        return set().union(*(self.flow.users(n) for n in self.made_in[path])) - self.made_in[path]

    def _last(self, term: _Term) -> set[str]:
        """The parameters of the maps nearest to the result; where operands are multiplied, those of one of them."""
        found: set[str] = set()
        waiting = [term.node]
        for node in waiting:
            weights = {name for source in self.flow.inputs(node) for name in self.flow.made_of(source)}
            found |= weights
            if not weights or self._is_sum(node):
                sources = [n for n in self.flow.inputs(node) if n in term.nodes and n not in waiting]
                waiting += sources if self._is_sum(node) or _joins(node) else self._weighted(sources)[:1]
        return found

    def _weighted(self, nodes: Sequence[Node]) -> list[Node]:
        """Those that were computed with parameters."""
        return [n for n in nodes if any(before in self.flow.parameters for before in self.flow.ancestors([n]))]

    def _name(self, term: _Term, reason: _RefusedError) -> str:
        """The module that makes the sum, if none of its terms is a branch; otherwise the term's heaviest module."""
        whole = "" if isinstance(reason, _NoSkipError) else heaviest(self.model, self._modules(term))
        return whole or module_of(term.parent) or "the model"


def _joins(node: Node) -> bool:
    return node.target in (torch.ops.aten.cat.default, torch.ops.aten.stack.default)


def heaviest(model: nn.Module, modules: Sequence[str] | Mapping[str, bool]) -> str:
    """Which of some modules has the most parameters, the first of those; empty if there is none."""
    return max(modules, key=lambda path: sum(p.numel() for p in model.get_submodule(path).parameters()), default="")
