"""How good a model is on a split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from setpoint.recipes.data import Batches


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy, and the fraction of examples whose class was found."""

    loss: float
    accuracy: float


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
        loss += F.cross_entropy(logits, targets, reduction="sum")
        right += (logits.argmax(1) == targets).sum()
        count += len(targets)
    model.train(training)
    return Score(float(loss) / count, int(right) / count)
