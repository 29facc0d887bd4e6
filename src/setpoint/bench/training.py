"""Models in training, dense or with a method at work, whose steps are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from setpoint.methods import make_method
from setpoint.recipes.models import build_model
from setpoint.sparsifier import Sparsifier


@dataclass(frozen=True)
class Task:
    """What is trained, on random examples.

    Attributes:
        name: in words.
        model: by the name that recipes know.
        shape: of one example.
        classes: of the outputs.
        batch: examples a step.
        optimizer: made as the recipe of such a model has it.
        whole: the kind of its units that cross layers.
        dense: globs of the weights that stay dense where units are single weights.
        width: multiplier of the model's.
    """

    name: str
    model: str
    shape: tuple[int, ...]
    classes: int
    batch: int
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    whole: str
    dense: tuple[str, ...] = ()
    width: float = 1.0

    @property
    def title(self) -> str:
        """The name with the batch."""
        return f"{self.name}, batch {self.batch}"

    @property
    def units(self) -> tuple[str, str]:
        """Single weights, and units that cross layers."""
        return ("weight", self.whole)


def _sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)


def _adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return AdamW(parameters, lr=1e-3, weight_decay=0.1)


RESNET20 = Task("ResNet-20", "resnet20", (3, 32, 32), 10, 128, _sgd, "channel")
GPT = Task("byte GPT", "gpt", (128,), 256, 16, _adamw, "neuron", dense=("head.weight",))
TASKS = {"resnet20": RESNET20, "gpt": GPT}

# Of a run whose default interval is taken: about what the recipe of ResNet-20 trains for.
STEPS = 20_000
# What goes, of single weights and of whole units.
_SPARSITY = {"weight": 0.9}
_SPARSITY_OF_UNITS = 0.5


def default_interval(method: str, steps: int = STEPS) -> int | None:
    """Steps between two updates by default, in a run of so many steps; None where none is ever made."""
    line = make_method(method).timeline(None, steps)
    return line.interval if line.interval < line.end - line.begin else None


class Training:
    """A model in training; if there is a method, in the middle of its sparsify phase and with its first update made.

    Args:
        task: what is trained.
        method: by its short name, or None for a dense model.
        unit: what becomes zero together.
        device: where.
        updates: whether the method makes an update at every step, or none within the steps that are left.
        turns: how many steps will be taken before the phase ends, at least.
    """

    def __init__(
        self,
        task: Task,
        method: str | None,
        unit: str = "weight",
        *,
        device: torch.device,
        updates: bool = False,
        turns: int = 8,
    ) -> None:
        torch.manual_seed(0)
        self.model = build_model(task.model, shape=task.shape, classes=task.classes, width=task.width).to(device)
        self.optimizer = task.optimizer(self.model.parameters())
        self.inputs, self.targets = _examples(task, device)
        self.sparsifier = None
        half = turns + 2
        if method is not None:
            schedule = replace(make_method(method).schedule, begin=0, end=2 * half, interval=1 if updates else half)
            self.sparsifier = Sparsifier(
                self.model,
                self.optimizer,
                method=method,
                target=_SPARSITY.get(unit, _SPARSITY_OF_UNITS),
                unit=unit,
                steps=4 * half,
                schedule=schedule,
                exclude=task.dense if unit == "weight" else None,
                example_inputs=self.inputs[:1],
            )
        self._advance(half + 1 if method is not None else 1)

    def _advance(self, steps: int) -> None:
        """Take steps of the optimizer with gradients of zero: their number is all that counts."""
        self.backward()
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
        for _ in range(steps):
            self.step()

    @property
    def parameter_bytes(self) -> int:
        """Of all parameters of the model."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    def backward(self) -> None:
        """Leave the gradients of a batch."""
        self.optimizer.zero_grad()
        outputs: Tensor = self.model(self.inputs)
        loss = F.cross_entropy(outputs.flatten(0, -2), self.targets.flatten())
        torch.autograd.backward(loss)

    def step(self) -> None:
        """Take the optimizer's step, with all that hangs on it."""
        self.optimizer.step()

    def freeze(self) -> None:
        """End the sparsify phase."""
        if self.sparsifier is not None:
            self.sparsifier.freeze()


def _examples(task: Task, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if len(task.shape) == 1:
        tokens = torch.randint(task.classes, (task.batch, task.shape[0] + 1), generator=generator).to(device)
        return tokens[:, :-1], tokens[:, 1:]
    images = torch.randn(task.batch, *task.shape, generator=generator)
    return images.to(device), torch.randint(task.classes, (task.batch,), generator=generator).to(device)
