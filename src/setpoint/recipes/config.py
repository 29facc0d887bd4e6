"""What a training run is told: one dataclass for the command line, the run's file and the library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from setpoint.budget import Cost, Schedule, Target, as_scope
from setpoint.budget.schedule import Shape
from setpoint.methods import Method, make_method
from setpoint.options import choice, read_fields
from setpoint.transforms import Inner

OptimizerName = Literal["sgd", "adam", "adamw"]
RateSchedule = Literal["cosine", "constant"]
Precision = Literal["float32", "bfloat16"]
Transform = Literal["none", "wide", "parallel", "factorized", "doped"]
Option = bool | int | float | str


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run. What is None is filled in from the data set's recipe by `resolve`.

    Attributes:
        data: digits, mnist, fashion-mnist, cifar10, tinyshakespeare, or the path of a folder of images or of a text.
        model: by name, such as mlp, lenet300, lenet5, resnet20, vgg16, or gpt for texts.
        width: multiplier of the model's hidden sizes.
        context: bytes in a window of a text.
        method: how training gets to the target, such as gsp or magnitude.
        options: of the method, by name.
        sparsity: fraction of the cost that goes. None where a Hoyer sparsity, an N:M pattern or a transformation says
            how much.
        budget: how much of the cost may stay, instead of a sparsity, and is never exceeded: 20000 params, 4e7 flops, 5
            ms; below 1 a fraction, but of milliseconds.
        hoyer: average Hoyer sparsity to reach, for the method gsp.
        cost: what the sparsity or the budget counts: params, units, flops, bytes or latency_ms.
        unit: what becomes zero together: weight, row, column, kernel, filter, a block such as 4x4, or 2:4; or what can
            be taken out of the network: channel, neuron, head or layer (a residual branch).
        batch: examples of the forward pass whose flops or latency are counted.
        multiple_of: widths of channels, neurons and heads are multiples of this, or full.
        scope: who holds a budget: global, uniform or erk; in a file also a mapping from globs to sparsities.
        floor: units that no layer may lose.
        include: globs of the parameters to make sparse; all weights by default.
        exclude: globs of parameters to leave dense; of a text's model the last layer, where nothing is said of layers.
        transform: how layers are made larger before training, for the operations of the dense model: wide, parallel,
            factorized or doped. It says how much goes, and of which weights; include and exclude choose the layers.
        transform_sparsity: that it spends.
        transform_inner: what stands between the layers of factorized, and at the end of the branches of parallel:
            linear (nothing), norm, relu or norm-relu.
        schedule: how the budget shrinks: cubic, linear, one-shot, or constant for methods that are sparse throughout;
            by default the method's, as are begin and end.
        begin: where the sparsify phase begins: a step (1000) or a fraction of the run (0.1).
        end: where it ends and the frozen phase begins, likewise.
        interval: steps between two updates; by default about 100 updates are made.
        epochs: passes over the training examples.
        batch_size: examples a step.
        optimizer: sgd, adam or adamw.
        lr: learning rate at the start.
        weight_decay: of weights; never of biases and norms.
        momentum: of sgd.
        lr_schedule: cosine (to zero) or constant.
        augment: vary the training examples, where the data set allows it.
        precision: of the operations in training: float32, or bfloat16 where torch's autocast takes it (weights,
            optimizer and evaluation stay in float32).
        seed: decides weights, batches and the validation split.
        device: cpu, cuda, or auto for cuda where there is one.
        checkpoint_every: steps between two checkpoints; one more is written after every epoch.
        dense_twin: train the same model densely as well, once, to compare with.

    Raises:
        ValueError: for a value that is not possible, naming the field.
    """

    data: str = "digits"
    model: str | None = None
    width: float | None = None
    context: int = 128
    method: str = "gsp"
    options: Mapping[str, Option] = field(default_factory=dict)
    sparsity: float | None = 0.9
    budget: float | None = None
    hoyer: float | None = None
    cost: Cost = "params"
    unit: str = "weight"
    batch: int = 1
    multiple_of: int = 1
    scope: str | Mapping[str, float] = "global"
    floor: int = 1
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] | None = None
    transform: Transform = "none"
    transform_sparsity: float = 0.75
    transform_inner: Inner = "linear"
    schedule: Shape | None = None
    begin: int | float | None = None
    end: int | float | None = None
    interval: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: OptimizerName | None = None
    lr: float | None = None
    weight_decay: float | None = None
    momentum: float | None = None
    lr_schedule: RateSchedule | None = None
    augment: bool = True
    precision: Precision = "float32"
    seed: int = 0
    device: str = "cpu"
    checkpoint_every: int = 200
    dense_twin: bool = True

    def __post_init__(self) -> None:
        read_fields(self, "")
        as_scope(self.scope)
        for name in ("context", "epochs", "batch", "batch_size", "checkpoint_every"):
            _check_at_least(name, getattr(self, name), 1)
        for name in ("floor", "seed", "weight_decay"):
            _check_at_least(name, getattr(self, name), 0)
        if self.lr is not None and not 0.0 < self.lr < float("inf"):
            raise ValueError(f"lr={self.lr} must be a number above 0")
        if self.momentum is not None and not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum={self.momentum} must lie in [0, 1)")
        choice("cost", self.cost, get_args(Cost))
        _check_choice("optimizer", self.optimizer, get_args(OptimizerName))
        _check_choice("lr_schedule", self.lr_schedule, get_args(RateSchedule))
        _check_choice("precision", self.precision, get_args(Precision))
        _check_choice("transform", self.transform, get_args(Transform))
        _check_choice("transform_inner", self.transform_inner, get_args(Inner))
        self._check_transform()
        # Building these is their check: a fault is told before any data are read.
        self.target, self.phases, self.build_method()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> TrainConfig:
        """Make a config of the values that a user gave.

        A sparsity that was not given is not filled in where something else says how much is to go: a budget, a Hoyer
        sparsity, an N:M pattern, a transformation, or a mapping of globs.
        """
        elsewhere = any(given.get(name) is not None for name in ("budget", "hoyer"))
        elsewhere = elsewhere or ":" in str(given.get("unit", "")) or given.get("transform", "none") != "none"
        if "sparsity" not in given and (elsewhere or isinstance(given.get("scope"), Mapping)):
            given = {**given, "sparsity": None}
        return cls(**given)

    def _check_transform(self) -> None:
        """Refuse what else would say how much goes."""
        if not 0.0 < self.transform_sparsity < 1.0:
            raise ValueError(f"transform_sparsity={self.transform_sparsity} must lie strictly between 0 and 1")
        if self.transform_inner != "linear" and self.transform not in ("parallel", "factorized"):
            raise ValueError(
                f"transform_inner={self.transform_inner!r} is of the transformations parallel and factorized, not of "
                f"{self.transform!r}"
            )
        usual = {"sparsity": None, "budget": None, "hoyer": None, "cost": "params", "unit": "weight", "scope": "global"}
        for name, value in usual.items() if self.transform != "none" else ():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} was asked for, but transform={self.transform!r} says how much of "
                    f"each weight goes: leave {name} out, and say transform_sparsity"
                )

    @property
    def target(self) -> Target | None:
        """What is asked for; None for all that an N:M pattern, a scope of globs or a transformation gives."""
        if self.sparsity is None and self.budget is None and self.hoyer is None:
            return None
        asked: dict[str, Any] = {"sparsity": self.sparsity, "hoyer": self.hoyer, "multiple_of": self.multiple_of}
        if self.budget is not None:
            asked[self.cost] = self._amount(self.budget)
        return Target(cost=self.cost, **asked)

    def _amount(self, budget: float) -> int | float:
        """A budget as a target takes it: 4e7 is an amount, though YAML has it as a float."""
        return int(budget) if self.cost != "latency_ms" and float(budget).is_integer() else budget

    @property
    def phases(self) -> Schedule:
        """The phases of the run and the path of the budget: what is said here, and otherwise the method's."""
        own = make_method(self.method).schedule
        return Schedule(
            own.shape if self.schedule is None else self.schedule,
            own.begin if self.begin is None else self.begin,
            own.end if self.end is None else self.end,
            own.interval if self.interval is None else self.interval,
        )

    def build_method(self) -> Method:
        """The method with its options.

        Raises:
            ValueError: for an unknown method, or an option that it does not have.
        """
        known = [option.name for option in fields(make_method(self.method))]
        options = {name: _read(value) for name, value in self.options.items()}
        asked = ", ".join(f"{name}={value}" for name, value in options.items())
        if not set(options) <= set(known):
            possible = ", ".join(known) or "none"
            raise ValueError(f"method {self.method!r} was given the options {asked}; possible are: {possible}")
        try:
            return make_method(self.method, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"method {self.method!r} was given the options {asked}: {error}") from error


def _read(value: Option) -> Option:
    """A number that YAML takes for text, such as 1e-3, as the number that it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _check_at_least(name: str, value: float | None, least: int) -> None:
    if value is not None and not least <= value < float("inf"):
        raise ValueError(f"{name}={value} must be at least {least}")


def _check_choice(name: str, value: str | None, possible: tuple[str, ...]) -> None:
    if value is not None:
        choice(name, value, possible)
