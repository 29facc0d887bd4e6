"""What the user asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Cost = Literal["units", "params", "flops", "bytes", "latency_ms"]


@dataclass(frozen=True)
class Target:
    """How much may stay. One of `sparsity`, `units`, `params`, `flops`, `bytes` and `latency_ms`, or `hoyer`, or both.

    Units of single parameters are counted in the parameters chosen; units that cross layers (channels, neurons, heads,
    whole layers) in the model, as it is once they are taken out.

    Attributes:
        sparsity: fraction of the cost that goes, in (0, 1).
        cost: what `sparsity` counts: `"params"`, entries of parameters; `"units"`, how many units; `"flops"`,
            floating-point operations of a forward pass on the example inputs, as `torch.utils.flop_counter` counts
            them; `"bytes"`, of the parameters (and of a whole model's buffers) as they lie in memory; `"latency_ms"`,
            the time of a forward pass on the example inputs. The same for single weights of one layer; not for
            filters of layers of different width. For N:M patterns units are single weights.
        units: how many units may stay: a number (int), or a fraction in (0, 1).
        params: how many entries of parameters may stay: a number (int), or a fraction in (0, 1).
        flops: how many operations may stay: a number (int), or a fraction in (0, 1).
        bytes: how many bytes may stay: a number (int), or a fraction in (0, 1).
        latency_ms: how many milliseconds a forward pass may take on the example inputs, their batch and all, measured
            on the machine; for units that cross layers. A fraction is `Target(sparsity=0.5, cost="latency_ms")`.
        device: where latency is measured; the model's own by default.
        multiple_of: widths of groups of units that cross layers are multiples of this, or full: hardware may run 33
            channels at half the speed of 32. The remainder goes to where it is worth most.
        hoyer: average Hoyer sparsity to reach, in (0, 1); only methods that project to it accept it.

    Raises:
        ValueError: if a value is out of range, or if two budgets contradict each other.
    """

    sparsity: float | None = None
    cost: Cost = "params"
    units: int | float | None = None
    params: int | float | None = None
    flops: int | float | None = None
    bytes: int | float | None = None
    latency_ms: int | float | None = None
    device: str | None = None
    hoyer: float | None = None
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if self.cost not in get_args(Cost):
            raise ValueError(f"cost={self.cost!r} is none of {', '.join(get_args(Cost))}")
        if self.multiple_of < 1:
            raise ValueError(f"multiple_of={self.multiple_of} must be at least 1")
        _check_fraction("sparsity", self.sparsity)
        _check_fraction("hoyer", self.hoyer)
        for name in get_args(Cost):
            _check_amount(name, getattr(self, name))
        given = [name for name in ("sparsity", *get_args(Cost)) if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"a target takes one budget, but {' and '.join(given)} were given")
        if self.device is not None and self.counted != "latency_ms":
            raise ValueError(
                f"device={self.device!r} says where latency is measured, but the {self.counted} are counted"
            )

    @classmethod
    def of(cls, target: Target | float | None) -> Target | None:
        """Read `0.9` as `Target(sparsity=0.9)`."""
        if target is None or isinstance(target, Target):
            return target
        return cls(sparsity=float(target))

    @property
    def counted(self) -> Cost:
        """The cost that the budget is counted in."""
        return next((name for name in get_args(Cost) if getattr(self, name) is not None), self.cost)

    @property
    def has_budget(self) -> bool:
        """Whether zeros are asked for, beside or instead of a Hoyer sparsity."""
        return any(getattr(self, name) is not None for name in ("sparsity", *get_args(Cost)))

    def kept(self, total: float) -> float:
        """The cost that may stay, of `total`."""
        amount = next((getattr(self, name) for name in get_args(Cost) if getattr(self, name) is not None), None)
        if amount is None:
            return total if self.sparsity is None else total * (1.0 - self.sparsity)
        absolute = isinstance(amount, int) or self.latency_ms is not None
        return float(amount) if absolute else total * amount

    def __str__(self) -> str:
        parts = []
        if self.sparsity is not None:
            parts.append(f"{_percent(self.sparsity)} of the {_WORDS.get(self.cost, self.cost)} go")
        amounts = {name: getattr(self, name) for name in get_args(Cost) if getattr(self, name) is not None}
        parts += [
            f"{v} {n} kept" if isinstance(v, int) else f"{_percent(v)} of the {n} kept"
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


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.6g} %"


def _check_fraction(name: str, value: float | None) -> None:
    if value is not None and not 0.0 < value < 1.0:
        raise ValueError(f"target {name}={value} must lie strictly between 0 and 1 (0.9 means that 90 % goes)")


def _check_amount(name: str, value: int | float | None) -> None:
    if value is None:
        return
    if name == "latency_ms":
        if not 0.0 < value < float("inf"):
            raise ValueError(f"target latency_ms={value} must be a number of milliseconds above 0")
        return
    fine = value >= 1 if isinstance(value, int) else 0.0 < value < 1.0
    if not fine:
        raise ValueError(f"target {name}={value} must be a number of {name} (an int >= 1) or a fraction in (0, 1)")
