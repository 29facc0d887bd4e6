"""Recurrent networks, one for each way of reading their states and of giving them."""

import torch
from torch import Tensor, nn

HIDDEN = 6


class Reader(nn.Module):
    """A layer between two linear ones, which reads all its outputs."""

    def __init__(self, kind: type[nn.RNNBase], **options) -> None:
        super().__init__()
        shown = (options.get("proj_size") or HIDDEN) * (2 if options.get("bidirectional") else 1)
        self.inputs, self.layer = nn.Linear(4, 5), kind(5, HIDDEN, **options)
        self.outputs = nn.Linear(shown, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(self.layer(torch.relu(self.inputs(x)))[0])


class LastStates(nn.Module):
    """Classifies by the last states of both directions; the first states are learned."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(4, HIDDEN, 2, bidirectional=True)
        self.first = nn.Parameter(torch.randn(4, 1, HIDDEN))
        self.outputs = nn.Linear(2 * HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first.expand(-1, x.shape[1], -1).contiguous()
        _, last = self.layer(x, (first, first) if isinstance(self.layer, nn.LSTM) else first)
        last = last[0] if isinstance(last, tuple) else last
        return self.outputs(torch.cat([last[-2], last[-1]], dim=-1))


class EncoderDecoder(nn.Module):
    """One layer's last states are another's first."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.encoder, self.decoder, self.outputs = kind(4, HIDDEN), kind(4, HIDDEN), nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(self.decoder(x, self.encoder(x)[1])[0])


class Residual(nn.Module):
    """A layer adds to what it reads."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.inputs, self.layer, self.outputs = nn.Linear(4, HIDDEN), kind(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        return self.outputs(x + self.layer(x)[0])


class Steps(nn.Module):
    """A cell in a loop; the first state is computed from the first input."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.begin, self.cell, self.outputs = nn.Linear(4, HIDDEN), kind(4, HIDDEN), nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.tanh(self.begin(x[0]))
        state = (state, state) if isinstance(self.cell, nn.LSTMCell) else state
        answers = []
        for step in x.unbind(0):
            state = self.cell(step, state)
            answers.append(self.outputs(state[0] if isinstance(state, tuple) else state))
        return torch.stack(answers)


class Given(nn.Module):
    """The caller gives the first state."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.outputs = nn.GRU(4, HIDDEN), nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        return self.outputs(self.layer(x, first)[0])
