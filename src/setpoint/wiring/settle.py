"""Which sizes follow which axes: the constraints of a walk, solved by pinning what would break one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from setpoint.wiring.axes import Axis, pin
from setpoint.wiring.calls import Constraint
from setpoint.wiring.sizes import AttributeOf, Constant, Expression, Operation, SizeOf
from setpoint.wiring.walk import Walk

# A size as a polynomial in the sizes of free atoms: coefficients by the sorted numbers of the atoms in each term.
Polynomial = dict[tuple[int, ...], int]
Key = tuple[str, str, int | None]


def settle(walk: Walk, described: Mapping[Key, Axis]) -> dict[Key, Axis]:
    """Pin axes until every constraint of the walk holds whatever the free atoms' sizes.

    Args:
        walk: complete.
        described: axes whose sizes attributes are known to tell, whether or not they are read.

    Returns:
        By module path, attribute and position in it (None for a plain integer): the axis whose size it must have.
    """
    _pin_repeats(walk)
    while True:
        round_ = _Round(walk.named, walk.constraints, described)
        if not round_.run():
            read = {key: round_.followed[key] for key in round_.read}
            return {key: axis for key, axis in read.items() if not _is_number(polynomial(axis))}


def polynomial(axis: Axis) -> Polynomial:
    """The size of an axis in terms of its free atoms."""
    if axis.factors:
        result: Polynomial = {(): 1}
        for factor in axis.factors:
            result = _product(result, polynomial(factor))
        return result
    if axis.parts:
        result = {}
        for part in axis.parts:
            result = _sum(result, polynomial(part))
        return result
    atom = axis.root()
    return {(): atom.size} if atom.size == 1 or atom.pins else {(atom.number,): 1}


def _pin_repeats(walk: Walk) -> None:
    """An axis that runs through all pairs of one and the same axis cannot be cut unit by unit."""
    for value in (*walk.tensors.values(), *walk.named.values()):
        for axis in value.axes:
            for factors in _products(axis):
                atoms = [a for f in factors for a in set(f.atoms())]
                pin([a for a in atoms if atoms.count(a) > 1], "appears twice in one axis", "")


def _products(axis: Axis) -> Iterator[tuple[Axis, ...]]:
    if axis.factors:
        yield axis.factors
    for child in axis.factors or axis.parts:
        yield from _products(child)


class _Round:
    """One pass over the constraints."""

    def __init__(
        self, named: Mapping[str, object], constraints: list[Constraint], described: Mapping[Key, Axis]
    ) -> None:
        self.named, self.constraints = named, constraints
        self.followed = dict(described)
        self.read: dict[Key, None] = {}
        self.changed = False

    def run(self) -> bool:
        """Whether anything had to be pinned."""
        for constraint in self.constraints:
            if constraint.axis is not None and isinstance(constraint.expression, AttributeOf):
                self._follow(constraint.axis, constraint.expression, constraint.module)
            elif isinstance(constraint.expression, Operation) and constraint.expression.symbol == "==":
                self._follow_equal(constraint.expression, constraint.module)
        for constraint in self.constraints:
            if constraint.axis is None:
                self._keep(constraint.expression, constraint)
            elif not isinstance(constraint.expression, AttributeOf):
                self._agree(constraint)
        return self.changed

    def _follow_equal(self, equality: Operation, module: str) -> None:
        """An attribute that is found to be the size of an axis, as in a check of the input, is to stay so."""
        for size, attribute in ((equality.left, equality.right), (equality.right, equality.left)):
            if isinstance(size, SizeOf) and isinstance(attribute, AttributeOf):
                axis = self._named(size)
                if axis is not None:
                    self._follow(axis, attribute, module)

    def _follow(self, axis: Axis, attribute: AttributeOf, module: str) -> None:
        known = self.followed.setdefault(_key(attribute), axis)
        self.read[_key(attribute)] = None
        if polynomial(known) != polynomial(axis):
            reason = f"the attribute {attribute.name!r} is the size of several axes that could change apart"
            self._pin(_apart(polynomial(known), polynomial(axis)), (known, axis), reason, module)

    def _agree(self, constraint: Constraint) -> None:
        assert constraint.axis is not None
        own, told = polynomial(constraint.axis), self._evaluate(constraint.expression)
        if told != own:
            axes = (constraint.axis, *self._axes(constraint.expression))
            only = _apart(own, told) if told is not None else set()
            self._pin(only, axes, constraint.reason, constraint.module)

    def _keep(self, expression: Expression, constraint: Constraint) -> None:
        if isinstance(expression, Operation) and expression.symbol == "==":
            left, right = self._evaluate(expression.left), self._evaluate(expression.right)
            if left is not None and left == right:
                return
        self._pin(set(), tuple(self._axes(expression)), constraint.reason, constraint.module)

    def _pin(self, only: set[int], axes: tuple[Axis, ...], reason: str, module: str) -> None:
        """Pin the atoms of these numbers, all atoms if none is given."""
        for atom in [a for axis in axes for a in axis.atoms()]:
            if not atom.pins and atom.size > 1 and (not only or atom.number in only):
                pin(atom, reason, module)
                self.changed = True

    def _axes(self, expression: Expression) -> Iterator[Axis]:
        if isinstance(expression, SizeOf):
            axis = self._named(expression)
            if axis is not None:
                yield axis
        elif isinstance(expression, AttributeOf):
            if _key(expression) in self.followed:
                yield self.followed[_key(expression)]
        elif isinstance(expression, Operation):
            yield from self._axes(expression.left)
            yield from self._axes(expression.right)

    def _named(self, expression: SizeOf) -> Axis | None:
        value = self.named.get(expression.node)
        axis: Axis | None = getattr(value, "axes", {})[expression.axis] if value is not None else None
        return axis

    def _evaluate(self, expression: Expression) -> Polynomial | None:
        """The expression in terms of free atoms; None where that is no polynomial."""
        if isinstance(expression, SizeOf):
            axis = self._named(expression)
            return {(): expression.value} if axis is None else polynomial(axis)
        if isinstance(expression, AttributeOf):
            followed = self.followed.get(_key(expression))
            return {(): expression.value} if followed is None else polynomial(followed)
        if isinstance(expression, Operation):
            left, right = self._evaluate(expression.left), self._evaluate(expression.right)
            return None if left is None or right is None else _apply(expression.symbol, left, right)
        assert isinstance(expression, Constant)
        return {(): expression.value}


def _key(attribute: AttributeOf) -> Key:
    return attribute.module, attribute.name, attribute.position


def _apart(first: Polynomial, second: Polynomial) -> set[int]:
    """The atoms that only one of two sizes depends on: while they are fixed, the sizes may still be equal."""
    atoms = [{atom for term in size for atom in term} for size in (first, second)]
    return atoms[0] ^ atoms[1]


def _is_number(value: Polynomial) -> bool:
    return set(value) <= {()}


def _sum(left: Polynomial, right: Polynomial, sign: int = 1) -> Polynomial:
    result = dict(left)
    for term, coefficient in right.items():
        result[term] = result.get(term, 0) + sign * coefficient
    return {term: c for term, c in result.items() if c}


def _product(left: Polynomial, right: Polynomial) -> Polynomial:
    result: Polynomial = {}
    for one, first in left.items():
        for other, second in right.items():
            term = tuple(sorted((*one, *other)))
            result[term] = result.get(term, 0) + first * second
    return {term: c for term, c in result.items() if c}


def _apply(symbol: str, left: Polynomial, right: Polynomial) -> Polynomial | None:
    if symbol == "*":
        return _product(left, right)
    if symbol in "+-":
        return _sum(left, right, 1 if symbol == "+" else -1)
    if _is_number(left) and _is_number(right):
        divisor = right.get((), 0)
        return {(): left.get((), 0) // divisor} if divisor else None
    return _quotient(left, right) if len(right) == 1 else None


def _quotient(left: Polynomial, right: Polynomial) -> Polynomial | None:
    """Exact division by one term."""
    ((divisor, factor),) = right.items()
    result: Polynomial = {}
    for term, coefficient in left.items():
        rest = list(term)
        for atom in divisor:
            if atom not in rest:
                return None
            rest.remove(atom)
        if coefficient % factor:
            return None
        result[tuple(rest)] = coefficient // factor
    return result
