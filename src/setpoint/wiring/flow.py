"""The flow of values in an exported graph: who needs whom, and in which modules."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node

from setpoint.wiring.walk import TRANSPARENT
from setpoint.wiring.watch import plain

# Operators that hand on the very tensor they were given, where there is nothing for them to do. The graph then shows
# what follows as reading their result, wherever it was written to read the tensor itself.
_HANDING_ON = ("to", "contiguous", "alias", "type_as", "lift_fresh", "dropout", "feature_dropout", "alpha_dropout")


class Flow:
    """What each value of a graph is computed from, as far as it reaches the model's outputs.

    Graphs within the graph, such as those under autocast, are laid out in their places.

    Args:
        program: exported.
        first_names: of parameters and buffers, by each of their names.

    Attributes:
        nodes: those that compute or bring in values which the outputs depend on, in order.
        parameters, buffers: by node, the first name of what it brings in.
        constants: by node, what the graph itself holds.
        autocast: by node, the autocast that it is computed under: type of device, dtype, whether it is on.

    A node is `in` the flow if it is one of its nodes.
    """

    def __init__(self, program: ExportedProgram, first_names: Mapping[str, str]) -> None:
        self.parameters: dict[Node, str] = {}
        self.buffers: dict[Node, str] = {}
        self.constants: dict[Node, Any] = {}
        self.autocast: dict[Node, tuple[str, torch.dtype | None, bool]] = {}
        self._given: set[Node] = set()
        self._same: dict[Node, Node] = {}  # of nodes that only tell of another one
        self._bring_in(program, first_names)
        nodes, outputs = self._laid_out(program.graph_module, {}, None)
        self._inputs = {n: tuple(dict.fromkeys(self._origin(i) for i in n.all_input_nodes)) for n in nodes}
        needed = self.ancestors(outputs)
        self._all = [n for n in nodes if self._origin(n) in needed]
        self.nodes = [n for n in self._all if n is self._origin(n)]
        self._place = {n: i for i, n in enumerate(self.nodes)}
        self._users: dict[Node, set[Node]] = {n: set() for n in self.nodes}
        for node in self.nodes:
            for source in self._inputs[node]:
                self._users[source].add(node)
        self._results = {self._origin(n) for n in outputs}

    def _bring_in(self, program: ExportedProgram, names: Mapping[str, str]) -> None:
        placeholders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
        for spec in program.graph_signature.input_specs:
            node = placeholders.get(getattr(spec.arg, "name", ""))
            if node is None:
                continue
            if spec.target is None:
                self._given.add(node)
            elif spec.kind is InputKind.PARAMETER:
                self.parameters[node] = names[plain(spec.target)]
            elif spec.kind is InputKind.BUFFER:
                self.buffers[node] = names[plain(spec.target)]
            elif spec.target in program.constants:
                self.constants[node] = program.constants[spec.target]

    def _laid_out(
        self, graph: GraphModule, given: Mapping[str, Node], cast: tuple[str, torch.dtype | None, bool] | None
    ) -> tuple[list[Node], list[Node]]:
        """The nodes of a graph and of those within it, and what it answers."""
        nodes: list[Node] = []
        answers: list[Node] = []
        inner: dict[Node, list[Node]] = {}
        for node in graph.graph.nodes:
            container = node.args[0] if node.target is operator.getitem else None
            if node.op == "output":
                answers = list(node.all_input_nodes)
            elif node.name in given and node.op == "placeholder":
                self._same[node] = given[node.name]
            elif isinstance(container, Node) and container in inner:
                self._same[node] = inner[container][node.args[1]]
            elif (held := _held(graph, node)) is not None:
                where = next(i for i, a in enumerate(node.args) if isinstance(a, Node) and a.op == "get_attr")
                names = [n.name for n in held.graph.nodes if n.op == "placeholder"]
                under = _autocast(node) or cast
                own, inner[node] = self._laid_out(held, dict(zip(names, node.args[where + 1 :])), under)
                nodes += own
            else:
                if node.op == "get_attr":
                    self.constants[node] = _attribute(graph, node)
                if cast is not None:
                    self.autocast[node] = cast
                nodes.append(node)
        return nodes, answers

    def __contains__(self, node: Node) -> bool:
        return node in self._place

    def inputs(self, node: Node) -> tuple[Node, ...]:
        """What a value is computed from, parameters included."""
        return self._inputs[node]

    def users(self, node: Node) -> set[Node]:
        """What is computed from a value."""
        return self._users[node]

    def is_for(self, node: Node, users: Set[Node]) -> bool:
        """Whether a value is for these alone, and not among the model's outputs."""
        return node not in self._results and self._users[node] <= users

    def made_of(self, node: Node) -> set[str]:
        """The parameters that a value was computed from, if it was computed from nothing but these and buffers."""
        sources = {n for n in self.ancestors([node]) if not self._inputs[n]}
        fixed = sources <= self.parameters.keys() | self.buffers.keys() | self.constants.keys()
        return {self.parameters[n] for n in sources if n in self.parameters} if fixed else set()

    def is_activation(self, node: Node) -> bool:
        """Whether it is a tensor of numbers that was computed from the model's input."""
        made = node.meta.get("val")
        number = node.op == "call_function" and isinstance(made, Tensor) and made.is_floating_point()
        return number and not self._given.isdisjoint(self.ancestors([node]))

    def ancestors(self, nodes: Iterable[Node]) -> set[Node]:
        """These and all that they are computed from."""
        found: set[Node] = set()
        waiting = [self._origin(n) for n in nodes]
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting += self._inputs[node]
        return found

    def only_for(self, node: Node) -> frozenset[Node]:
        """A value and all that was computed for nothing else."""
        found = {node}
        for earlier in reversed(self.nodes[: self._place[node]]):
            if earlier.op == "call_function" and self.is_for(earlier, found):
                found.add(earlier)
        return frozenset(found)

    def between(self, start: Node, end: Node) -> set[Node]:
        """What lies on the ways from one value to another, which is included."""
        before = self.ancestors([end])
        found = {start}
        for node in self.nodes[self._place[start] + 1 : self._place[end] + 1]:
            if node in before and not found.isdisjoint(self._inputs[node]):
                found.add(node)
        return found - {start}

    def place(self, node: Node) -> int:
        """Where a node is in the order of computation."""
        return self._place[node]

    def ordered(self, nodes: Iterable[Node]) -> list[Node]:
        """In the order of computation."""
        return sorted(nodes, key=self._place.__getitem__)

    def calls(self, nodes: Set[Node]) -> list[Node]:
        """The graph's own nodes for some values, those that only hand them on included, in order."""
        return [n for n in self._all if self._origin(n) in nodes]

    def told_of(self, node: Node) -> Node:
        """The node that one in the arguments of another stands for."""
        while node in self._same:
            node = self._same[node]
        return node

    def _origin(self, node: Node) -> Node:
        """The value that a node hands on untouched, otherwise the node's own."""
        node = self.told_of(node)
        while _hands_on(node):
            node = self.told_of(node.all_input_nodes[0])
        return node


def _held(graph: GraphModule, node: Node) -> GraphModule | None:
    """The graph that an operator runs as it stands."""
    if node.op != "call_function" or not str(node.target).startswith(TRANSPARENT):
        return None
    held = [_attribute(graph, a) for a in node.args if isinstance(a, Node) and a.op == "get_attr"]
    return held[0] if len(held) == 1 and isinstance(held[0], GraphModule) else None


def _attribute(graph: GraphModule, node: Node) -> Any:
    found: Any = graph
    for name in str(node.target).split("."):
        found = getattr(found, name)
    return found


def _autocast(node: Node) -> tuple[str, torch.dtype | None, bool] | None:
    if not str(node.target).startswith("wrap_with_autocast"):
        return None
    device, dtype, on = node.args[:3]
    return str(device), dtype if isinstance(dtype, torch.dtype) else None, bool(on)


def _hands_on(node: Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    name = node.target._schema.name.rpartition("::")[2]
    if name not in _HANDING_ON or (name.endswith("dropout") and all(node.args[1:3])):
        return False
    source, result = node.all_input_nodes[0].meta.get("val"), node.meta.get("val")
    if not isinstance(source, Tensor) or not isinstance(result, Tensor):
        return False
    return (source.shape, source.dtype, source.device) == (result.shape, result.dtype, result.device)


def paths(node: Node) -> Iterator[str]:
    """The modules in whose forward passes a node came about, the outermost first, the model itself left out."""
    for path, _ in (node.meta.get("nn_module_stack") or {}).values():
        if plain(path):
            yield plain(path)
