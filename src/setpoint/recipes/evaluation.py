"""How good a model is on a split."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from setpoint.recipes.data import Batches, Task


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy in nats, and the fraction of targets that were found: classes of images, bytes of a text."""

    loss: float
    accuracy: float

    def rank(self, task: Task) -> float:
        """What the best epoch has the most of: accuracy of a classifier; a language model is chosen by its loss."""
        rank = self.accuracy if task == "classification" else -self.loss
        return rank if math.isfinite(rank) else -math.inf


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy over all targets: one an example, or one for each position of each example.

    Args:
        logits: of shape (N, classes) or (N, T, classes).
        targets: class indices of shape (N,) or (N, T).
        reduction: mean or sum.
    """
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction=reduction)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches) -> Score:
    """Score a model, in evaluation mode, on all examples; the mode it was in is put back."""
    training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=batches.device)
    right = torch.zeros((), dtype=torch.int64, device=batches.device)
    count = 0
    for inputs, targets in batches:
        logits = model(inputs)
        loss += cross_entropy(logits, targets, "sum")
        right += (logits.argmax(-1) == targets).sum()
        count += targets.numel()
    model.train(training)
    return Score(float(loss) / count, int(right) / count)
