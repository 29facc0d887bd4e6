"""What the user asks for."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import torch

from setpoint.options import choice, number, read_fields

Cost = Literal["units", "params", "flops", "bytes", "latency_ms"]


@dataclass(frozen=True)
class Target:
    """How much may stay. One of `sparsity`, `units`, `params`, `flops`, `bytes` and `latency_ms`, or `hoyer`, or both.

    A budget (`units=`, `params=`, `flops=`, `bytes=`, `latency_ms=`) says what may stay and is never exceeded: a tenth
    of 16 units is 1. A sparsity says what goes, and is met to the nearest count that there is where all units that
    share it cost the same: 90 % of 16 units are 14, as 14.4 are not possible; of two counts as near, the sparser.
    Where costs differ, what stays is within either, and no further unit fits. A fraction is the decimal that is
    written, so that 0.29 of 100 is 29. `Report.budgets` has what was asked for, attainable and achieved.

    An int is an amount and a float a fraction: `units=1` is one unit, `units=0.5` half of them and `units=1.0` all of
    them, of which none has to go. More than there is cannot be asked for.

    Units of single parameters are counted in the parameters chosen; units that cross layers (channels, neurons, heads,
    whole layers) in the model, as it is once they are taken out.

    Attributes:
        sparsity: fraction of the cost that goes, in (0, 1).
        cost: what `sparsity` counts: `"params"`, entries of parameters; `"units"`, how many units; `"flops"`,
            floating-point operations of a forward pass on the example inputs, as `torch.utils.flop_counter` counts
            them; `"bytes"`, of the parameters (and of a whole model's buffers) as they lie in memory; `"latency_ms"`,
            the time of a forward pass on the example inputs. The same for single weights of one layer; not for
            filters of layers of different width. For N:M patterns units are single weights.
        units: how many units may stay: a number (int), or a fraction in (0, 1] (float).
        params: how many entries of parameters may stay: a number (int), or a fraction in (0, 1] (float).
        flops: how many operations may stay: a number (int), or a fraction in (0, 1] (float).
        bytes: how many bytes may stay: a number (int), or a fraction in (0, 1] (float).
        latency_ms: how many milliseconds (int or float) a forward pass may take on the example inputs, their batch and
            all, measured on the machine; for units that cross layers. A fraction is
            `Target(sparsity=0.5, cost="latency_ms")`.
        device: where latency is measured; the model's own by default.
        multiple_of: widths of groups of units that cross layers are multiples of this, or full: hardware may run 33
            channels at half the speed of 32. The remainder goes to where it is worth most.
        hoyer: average Hoyer sparsity to reach, in (0, 1); only methods that project to it accept it.

    Raises:
        ValueError: if nothing is asked for, if a value is out of range, or if two budgets contradict each other.
    """

    sparsity: float | None = None
    cost: Cost = "params"
    units: int | float | None = None
    params: int | float | None = None
    flops: int | float | None = None
    bytes: int | float | None = None
    latency_ms: int | float | None = None
    device: str | torch.device | None = None
    hoyer: float | None = None
    multiple_of: int = 1

    def __post_init__(self) -> None:
        read_fields(self, "target")
        choice("target cost", self.cost, get_args(Cost))
        if self.multiple_of < 1:
            raise ValueError(f"target multiple_of={self.multiple_of} must be at least 1")
        check_sparsity("target sparsity", self.sparsity)
        check_sparsity("target hoyer", self.hoyer)
        for name in get_args(Cost):
            _check_amount(name, getattr(self, name))
        self._check_budgets()
        self._check_device()

    def _check_budgets(self) -> None:
        given = [name for name in ("sparsity", *get_args(Cost)) if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"a target takes one budget, but {' and '.join(given)} were given")
        if not given and self.hoyer is None:
            raise ValueError(
                "a target must say how much goes or stays, but none of sparsity, "
                f"{', '.join(get_args(Cost))} and hoyer was given: such as Target(sparsity=0.9) or Target(params=0.1)"
            )
        if self.cost not in ("params", self.counted):
            raise ValueError(f"target cost={self.cost!r} says what a sparsity counts, but {given[0]} was given")

    def _check_device(self) -> None:
        if self.device is None:
            return
        if not isinstance(self.device, str | torch.device):
            raise ValueError(f"target device={self.device!r} must be the name of a device, such as 'cpu'")
        if self.counted != "latency_ms":
            raise ValueError(
                f"target device={self.device!r} says where latency is measured, but the {self.counted} are counted"
            )

    @classmethod
    def of(cls, target: Target | float | None) -> Target | None:
        """Read `0.9` as `Target(sparsity=0.9)`.

        Raises:
            ValueError: for what is neither a number in (0, 1) nor a target.
        """
        if target is None or isinstance(target, Target):
            return target
        return cls(sparsity=number("target", target, "0.9 (90 % goes), or a setpoint.Target"))

    @property
    def counted(self) -> Cost:
        """The cost that the budget is counted in."""
        return next((name for name in get_args(Cost) if getattr(self, name) is not None), self.cost)

    @property
    def has_budget(self) -> bool:
        """Whether zeros are asked for, beside or instead of a Hoyer sparsity."""
        return any(getattr(self, name) is not None for name in ("sparsity", *get_args(Cost)))

    @property
    def never_exceeded(self) -> bool:
        """Whether it says what may stay, and not, as a sparsity does, about how much goes."""
        return self.sparsity is None

    def may_stay(self, total: float) -> Fraction:
        """The fraction of the cost that may stay, where everything costs `total`.

        Raises:
            ValueError: for an amount of more than there is.
        """
        name = self.counted
        amount = getattr(self, name)
        if self.sparsity is not None:
            return 1 - _decimal(self.sparsity)
        if amount is None:
            return Fraction(1)
        if isinstance(amount, float) and name != "latency_ms":
            return _decimal(amount)
        if amount > total:
            raise ValueError(
                f"target {name}={_number(amount)} may stay, but there are only {_number(total)} in all: nothing would "
                f"go; possible: at most {_number(total)}, and less for anything to go"
            )
        return Fraction(amount) / Fraction(total)

    def kept(self, total: float) -> float:
        """The cost that may stay, of `total`.

        Raises:
            ValueError: for an amount of more than there is.
        """
        return float(Fraction(total) * self.may_stay(total))

    def __str__(self) -> str:
        parts = []
        if self.sparsity is not None:
            parts.append(f"{_percent(self.sparsity)} of the {_WORDS.get(self.cost, self.cost)} go")
        amounts = {name: getattr(self, name) for name in get_args(Cost) if getattr(self, name) is not None}
        parts += [
            f"at most {v:,} {n} kept" if isinstance(v, int) else f"at most {_percent(v)} of the {n} kept"
            for n, v in amounts.items()
            if n != "latency_ms"
        ]
        if self.latency_ms is not None:
            parts.append(f"a forward pass in {self.latency_ms:g} ms")
        if self.multiple_of > 1:
            parts.append(f"widths in multiples of {self.multiple_of}")
        if self.hoyer is not None:
            parts.append(f"Hoyer sparsity {self.hoyer:g}")
        return ", ".join(parts)


# What is not written as it is called.
_WORDS = {"latency_ms": "milliseconds"}


def _decimal(fraction: float) -> Fraction:
    """The decimal that a float is written as: 0.29 itself, and not the binary number next to it."""
    return Fraction(repr(fraction))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.6g} %"


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:,.6g}"


def check_sparsity(name: str, value: Any) -> float | None:
    """A fraction that goes, or None where there is none.

    Raises:
        ValueError: for what does not lie between 0 and 1.
    """
    if value is None:
        return None
    found = number(name, value, "0.9")
    if not 0.0 < found < 1.0:
        meant = f"; did you mean {found / 100:g}?" if 2.0 <= found < 100.0 else ""
        raise ValueError(f"{name}={value} must lie strictly between 0 and 1 (0.9 means that 90 % goes){meant}")
    return float(found)


def _check_amount(name: str, value: int | float | None) -> None:
    if value is None:
        return
    if name == "latency_ms":
        if not 0.0 < value < float("inf"):
            raise ValueError(f"target latency_ms={value} must be a number of milliseconds above 0")
        return
    if value >= 1 if isinstance(value, int) else 0.0 < value <= 1.0:
        return
    meant = f"; did you mean {int(value)}?" if value > 1.0 and float(value).is_integer() else ""
    raise ValueError(f"target {name}={value} must be a number of {name} (an int >= 1) or a fraction in (0, 1]{meant}")
