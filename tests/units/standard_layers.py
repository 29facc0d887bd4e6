"""Small models of every kind of layer whose weights are taken by default, with a batch for each."""

import torch
from torch import nn


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.layer, self.head = kind(8, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.layer(x)[0])


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.GRUCell(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.layer(x[:, 0]))


class Attention(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.layer, self.head = nn.MultiheadAttention(8, 2, batch_first=True, **options), nn.Linear(8, 4)

    def forward(self, x):
        values = x[..., : self.layer.kdim]
        return self.head(self.layer(x, values, values)[0])


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Bilinear(8, 8, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.layer(x, x))


class Transposed(nn.Module):
    """The transformers library's Conv1D, which stores (inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.layer, self.head = Conv1D(12, 8), nn.Linear(12, 4)

    def forward(self, x):
        return self.head(torch.relu(self.layer(x)))


class Experts(nn.Module):
    """Three experts of two layers each, stored (experts, outputs, inputs) or with the inputs before the outputs."""

    def __init__(self, transposed: bool, *, told: bool = True) -> None:
        super().__init__()
        self.num_experts, self.inputs_first = 3, transposed
        if told:
            self.is_transposed = transposed
        up, down = torch.randn(3, 12, 8) / 3, torch.randn(3, 4, 12) / 3
        self.up = nn.Parameter(up.mT.contiguous() if transposed else up)
        self.down = nn.Parameter(down.mT.contiguous() if transposed else down)

    def forward(self, x):
        return sum(self._one(self._one(x, self.up[e]).relu(), self.down[e]) for e in range(3))

    def _one(self, x, weight):
        return x @ weight if self.inputs_first else nn.functional.linear(x, weight)


NETS = {
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "cells": Cells,
    "attention": Attention,
    "attention apart": lambda: Attention(kdim=6, vdim=6),
    "bilinear": TwoInputs,
    "transposed": Transposed,
    "experts": lambda: Experts(False),
    "experts transposed": lambda: Experts(True),
}


def build(net: str):
    """(model, optimizer, batch)."""
    torch.manual_seed(0)
    model = NETS[net]()
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), torch.randn(6, 5, 8)


def matrices(model: nn.Module, name: str) -> list[torch.Tensor]:
    """The matrices (outputs, inputs) that a parameter is, as the layers' own code multiplies them."""
    weight = model.get_parameter(name).detach()
    if isinstance(model, Experts):
        return list(weight.mT if model.inputs_first else weight)
    if isinstance(model, Transposed) and name == "layer.weight":
        return [weight.T]
    if isinstance(model, TwoInputs) and name == "layer.weight":
        return list(weight.permute(2, 0, 1))  # one for each position of the second input
    return [weight]
