"""What projections are measured on: sets of weights of the sizes that networks have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from setpoint.recipes.models import build_model


@dataclass(frozen=True)
class Weights:
    """A set of float32 weights.

    Attributes:
        name: of the set, in words.
        tensors: shaped as the layers that they are of.
        by_rows: whether the vectors whose sparsity counts are the rows, rather than each tensor as a whole.
    """

    name: str
    tensors: tuple[Tensor, ...]
    by_rows: bool = False

    @property
    def count(self) -> int:
        """Of all entries."""
        return sum(t.numel() for t in self.tensors)

    @property
    def bytes(self) -> int:
        """Of all entries."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.tensors[0].device

    @property
    def flat(self) -> list[Tensor]:
        """Each tensor as one vector, a view."""
        return [t.view(-1) for t in self.tensors]

    @property
    def vectors(self) -> list[Tensor]:
        """As `project_gsp` takes them: matrices of rows, or vectors; views."""
        return [t.flatten(1) if self.by_rows else t.view(-1) for t in self.tensors]


def resnet50(device: torch.device, *, scale: float = 1.0, initial: bool = False) -> Weights:
    """The weights of ResNet-50's convolutions and its last layer, 25.5 M in 54 tensors.

    Args:
        device: where they are.
        scale: of their number, by narrower layers; roughly.
        initial: as the network begins training, rather than of deviation 1 throughout.
    """
    # Two figures of the width, as one can say it of a model.
    width = max(round(scale**0.5, 2), 0.01)
    with torch.random.fork_rng(devices=[]), torch.device("cpu" if initial else "meta"):
        torch.manual_seed(0)
        model = build_model("resnet50", shape=(3, 224, 224), classes=1000, width=width)
    weights = [module.weight.detach() for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    generator = torch.Generator(device).manual_seed(0)
    drawn = [w.to(device) if initial else torch.randn(w.shape, generator=generator, device=device) for w in weights]
    kind = " at first" if initial else ""
    return Weights(f"ResNet-50{kind}, {_words(sum(d.numel() for d in drawn))} in {len(drawn)} tensors", tuple(drawn))


def one_tensor(device: torch.device, count: int) -> Weights:
    """One vector of so many weights."""
    return Weights(f"one tensor of {_words(count)}", (_normal(device, count),))


def rows(device: torch.device, count: int, length: int) -> Weights:
    """A matrix whose rows are the vectors."""
    return Weights(f"{count:,} rows of {length:,}", (_normal(device, count, length),), by_rows=True)


def norms(device: torch.device, count: int) -> Tensor:
    """The l2 norms of so many groups of nine normal numbers."""
    generator = torch.Generator(device).manual_seed(0)
    squares = torch.zeros(count, device=device)
    for _ in range(9):  # one at a time: no more than twice the norms are held
        squares += torch.randn(count, generator=generator, device=device).square_()
    return squares.sqrt_()


def _normal(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator(device).manual_seed(0), device=device)


def _words(count: int) -> str:
    for size, letter in ((10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)
