"""Models that are mostly weights: stacks of square Linear layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Stack:
    """So many `nn.Linear(width, width, bias=False)` in a row, in float32.

    Attributes:
        layers: how many.
        width: of each.
    """

    layers: int = 24
    width: int = 2048

    @property
    def count(self) -> int:
        """Of the weights."""
        return self.layers * self.width**2

    @property
    def bytes(self) -> int:
        """Of the weights."""
        return 4 * self.count

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.layers} Linear of {self.width} x {self.width}, {self.count / 1e6:,.0f} M weights"

    def scaled(self, scale: float) -> Stack:
        """As many layers, of narrower or wider matrices: the scale is that of the number of weights."""
        return replace(self, width=max(8, round(math.sqrt(scale) * self.width)))

    def build(self) -> nn.Sequential:
        """Random weights, by which a layer's outputs are as large as its inputs."""
        with _seeded():
            with torch.device("meta"):
                model = nn.Sequential(*(nn.Linear(self.width, self.width, bias=False) for _ in range(self.layers)))
            model.to_empty(device="cpu")
            fill(model)
        return model

    def inputs(self, rows: int) -> Tensor:
        """A batch."""
        return torch.randn(rows, self.width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def fill(model: nn.Sequential) -> None:
    """Draw the weights of a stack anew, in the memory that is there."""
    for parameter in model.parameters():
        bound = math.sqrt(3.0 / parameter.shape[1])
        parameter.uniform_(-bound, bound)


class Gradients:
    """Gradients set by hand, always the same ones in the same memory.

    Each layer's is a multiple of one random matrix, which takes no memory but for that.
    """

    def __init__(self, model: nn.Sequential) -> None:
        self._parameters = list(model.parameters())
        like = self._parameters[0]
        generator = torch.Generator().manual_seed(2)
        self._source = torch.empty_like(like).uniform_(-1.0, 1.0, generator=generator).div_(like.shape[1])
        for parameter in self._parameters:
            parameter.grad = torch.empty_like(parameter)
        self.fill()

    @torch.no_grad()
    def fill(self) -> None:
        """Set them again: a step may have zeroed those of what is pruned."""
        for number, parameter in enumerate(self._parameters):
            assert parameter.grad is not None
            torch.mul(self._source, 1.0 + number / len(self._parameters), out=parameter.grad)


@contextmanager
def _seeded() -> Iterator[None]:
    """Random numbers of their own, which leave the others as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
