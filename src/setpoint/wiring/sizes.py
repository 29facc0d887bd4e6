"""Where the sizes in a forward pass come from: integers that remember what they were computed from."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch


class Expression:
    """What a size was computed from."""


@dataclass(frozen=True)
class Constant(Expression):
    """A number written in the code, or of unknown origin."""

    value: int


@dataclass(frozen=True)
class SizeOf(Expression):
    """The size of one axis of a tensor, read off that tensor; `node` is its name in the graph."""

    node: str
    axis: int
    value: int


@dataclass(frozen=True)
class AttributeOf(Expression):
    """An integer attribute of a module, or one entry of a tuple of integers."""

    module: str
    name: str
    position: int | None
    value: int


@dataclass(frozen=True)
class Operation(Expression):
    """`left symbol right`, where symbol is one of `+`, `-`, `*`, `//`; or `==` for a comparison that came out true."""

    symbol: str
    left: Expression
    right: Expression


class Size(torch.SymInt):
    """An integer with its expression.

    Sums, products and whole quotients of sizes are sizes. Where one is used as a number otherwise (a square root, a
    true quotient, the end of a loop), its expression is noted in the log that it carries: nothing that it depends on
    may then change. So is a comparison, as a branch may depend on it: of two equal sizes as their equality. What is
    compared with 0 or 1 may change, as code that treats a single position apart means the same by it.

    It passes for an `int` (and for torch, which would not let it into a shape otherwise, for a symbolic one), but is
    none: arithmetic of the interpreter's own, such as `1.0 / size`, would go unseen.
    """

    # Of the symbolic integer nothing is used, so its constructor is not called.
    def __init__(self, value: int, expression: Expression, log: list[Expression]) -> None:
        self.plain, self.expression, self.log = plain_number(value), expression, log

    # What `isinstance` asks.
    __class__ = property(lambda self: int)

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (self.plain,)  # copies are plain numbers

    def __hash__(self) -> int:
        return hash(self.plain)

    def __repr__(self) -> str:
        return repr(self.plain)

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(self.plain, spec)

    def __bool__(self) -> bool:
        return bool(self.plain)

    def __mod__(self, other: Any) -> Any:
        return self.plain % plain_number(other)  # asked for to see whether a size can be divided

    def __rmod__(self, other: Any) -> Any:
        return other % self.plain

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **options: Any) -> Any:
        self.log.append(self.expression)
        return getattr(function, method)(*(plain_number(i) for i in inputs), **options)


def is_size(value: Any) -> TypeGuard[Size]:
    """Whether a number is a size that remembers what it was computed from."""
    return issubclass(type(value), Size)


def plain_number(value: Any) -> Any:
    """A size as the number alone, anything else as it is."""
    return value.plain if is_size(value) else value


def expression_of(value: Any) -> Expression:
    """The expression of a size, or the plain number as a constant."""
    return value.expression if is_size(value) else Constant(int(value))


def _comparing(operation: Callable[[Any, Any], Any]) -> Callable[[Size, Any], Any]:
    def compare(self: Size, other: Any) -> Any:
        if is_size(other) and self.plain == other.plain:
            self.log.append(Operation("==", self.expression, other.expression))
        elif is_size(other) or not isinstance(other, int) or other > 1:
            self.log.extend(o.expression for o in (self, other) if is_size(o))
        return operation(self.plain, plain_number(other))

    return compare


def _derived(operation: Callable[[Any, Any], Any], symbol: str, reverse: bool) -> Callable[[Size, Any], Any]:
    """Arithmetic whose result is a size again, if the other operand is an integer."""
    escaping = _escaping(operation, reverse)

    def operate(self: Size, other: Any) -> Any:
        if not isinstance(other, int) or isinstance(other, bool):
            return escaping(self, other)
        left, right = (other, self) if reverse else (self, other)
        result = operation(plain_number(left), plain_number(right))
        return Size(result, Operation(symbol, expression_of(left), expression_of(right)), self.log)

    return operate


def _escaping(operation: Callable[..., Any], reverse: bool = False) -> Callable[..., Any]:
    """Arithmetic whose result is a plain number."""

    def operate(self: Size, *others: Any) -> Any:
        operands = (*others, self) if reverse else (self, *others)
        self.log.extend(o.expression for o in operands if is_size(o))
        return operation(*(plain_number(o) for o in operands))

    return operate


def _define() -> None:
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(Size, f"__{name}__", _comparing(getattr(operator, name)))
    for symbol, name in (("+", "add"), ("-", "sub"), ("*", "mul"), ("//", "floordiv")):
        setattr(Size, f"__{name}__", _derived(getattr(operator, name), symbol, False))
        setattr(Size, f"__r{name}__", _derived(getattr(operator, name), symbol, True))
    others = {name: getattr(operator, name) for name in ("truediv", "pow", "lshift", "rshift", "xor")}
    for name, operation in {**others, "and": operator.and_, "or": operator.or_, "divmod": divmod}.items():
        setattr(Size, f"__{name}__", _escaping(operation))
        setattr(Size, f"__r{name}__", _escaping(operation, reverse=True))
    unary: dict[str, Callable[..., Any]] = dict.fromkeys(("floor", "ceil", "trunc", "int", "index"), int)
    unary |= {"neg": operator.neg, "pos": operator.pos, "abs": abs, "invert": operator.invert}
    unary |= {"round": round, "float": float}
    for name, operation in unary.items():
        setattr(Size, f"__{name}__", _escaping(operation))


_define()
