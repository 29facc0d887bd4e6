"""The flow of values in an exported graph: who needs whom, and in which modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from setpoint.wiring.watch import plain

# Operators that hand on the very tensor they were given, where there is nothing for them to do. The graph then shows
# what follows as reading their result, wherever it was written to read the tensor itself.
_HANDING_ON = ("to", "contiguous", "alias", "type_as", "lift_fresh", "dropout", "feature_dropout", "alpha_dropout")


class Flow:
    """What each value of a graph is computed from, as far as it reaches the model's outputs.

    Args:
        program: exported.
        first_names: of parameters and buffers, by each of their names.

    Attributes:
        nodes: those that compute or bring in values which the outputs depend on, in order.
        parameters, buffers: by node, the first name of what it brings in.
        constants: by node, tensors of the graph itself.

    A node is `in` the flow if it is one of its nodes.
    """

    def __init__(self, program: ExportedProgram, first_names: Mapping[str, str]) -> None:
        nodes = list(program.graph.nodes)
        self._program = program
        self._given: set[Node] = set()
        self.parameters: dict[Node, str] = {}
        self.buffers: dict[Node, str] = {}
        self.constants: dict[Node, Tensor] = {}
        self._bring_in(program, {n.name: n for n in nodes if n.op == "placeholder"}, first_names)
        self._inputs = {n: tuple(dict.fromkeys(_origin(i) for i in n.all_input_nodes)) for n in nodes}
        outputs = [n for n in nodes if n.op == "output"]
        needed = self.ancestors(outputs)
        self._all = [n for n in nodes if _origin(n) in needed]
        self.nodes = [n for n in self._all if n is _origin(n)]
        self._place = {n: i for i, n in enumerate(self.nodes)}
        self._users: dict[Node, set[Node]] = {n: set() for n in self.nodes}
        for node in (*self.nodes, *outputs):
            for source in self._inputs[node]:
                self._users[source].add(node)

    def _bring_in(self, program: ExportedProgram, placeholders: dict[str, Node], names: Mapping[str, str]) -> None:
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
            elif isinstance(constant := program.constants.get(spec.target), Tensor):
                self.constants[node] = constant

    def inputs(self, node: Node) -> tuple[Node, ...]:
        """What a value is computed from, parameters included."""
        return self._inputs[node]

    def users(self, node: Node) -> set[Node]:
        """What is computed from a value; the model's output among them where it is one."""
        return self._users[node]

    def __contains__(self, node: Node) -> bool:
        return node in self._place

    def made_of(self, node: Node) -> set[str]:
        """The parameters that a value was computed from, if it was computed from nothing but these and buffers."""
        sources = {n for n in self.ancestors([node]) if not self._inputs[n]}
        fixed = sources <= self.parameters.keys() | self.buffers.keys() | self.constants.keys()
        return {self.parameters[n] for n in sources if n in self.parameters} if fixed else set()

    def is_activation(self, node: Node) -> bool:
        """Whether it is a tensor of numbers that was computed from the model's input."""
        made = node.meta.get("val")
        number = node.op == "call_function" and isinstance(made, Tensor) and made.is_floating_point()
        return number and any(n in self._given for n in self.ancestors([node]))

    def attribute(self, node: Node) -> Any:
        """What a node of the graph module's own, such as a graph within the graph, stands for."""
        found: Any = self._program.graph_module
        for name in str(node.target).split("."):
            found = getattr(found, name)
        return found

    def ancestors(self, nodes: Iterable[Node]) -> set[Node]:
        """These and all that they are computed from."""
        found: set[Node] = set()
        waiting = [_origin(n) for n in nodes]
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
            if earlier.op == "call_function" and self._users[earlier] <= found:
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

    def ordered(self, nodes: Iterable[Node]) -> list[Node]:
        """In the order of computation."""
        return sorted(nodes, key=self._place.__getitem__)

    def calls(self, nodes: Set[Node]) -> list[Node]:
        """The graph's own nodes for some values, those that only hand them on included, in order."""
        return [n for n in self._all if _origin(n) in nodes]


def _origin(node: Node) -> Node:
    """The value that a node hands on untouched, otherwise the node's own."""
    while _hands_on(node):
        node = node.all_input_nodes[0]
    return node


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
