"""Small networks that do something to the size of an axis, or to its positions, that a resize must not break."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Pair(nn.Module):
    """Two linear layers; what happens between them is given."""

    def __init__(self, between=lambda y: y, width: int = 6, read: int | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, width), nn.Linear(read or width, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


class Adapted(nn.Module):
    """A low-rank product is added to a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.weight, self.last = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 2)
        self.down, self.up = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.weight + self.up @ self.down
        return self.last(F.relu(F.linear(self.inner(x), weight, self.weight.bias)))


class Complex(nn.Module):
    """Heads in a stacked view, rotary positions as complex numbers, sizes from attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 3, 4
        self.qkv, self.out = nn.Linear(8, 36), nn.Linear(12, 8)
        self.register_buffer("turns", torch.polar(torch.ones(16, 2), torch.randn(16, 2)))

    def turn(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self.turns[: x.shape[-2]]).flatten(3)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        stacked = self.qkv(x).reshape(batch, length, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        q, k, v = stacked.unbind(0)
        y = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v)
        return self.out(y.transpose(1, 2).reshape(batch, length, self.heads * self.width))


class ChannelConvolution(nn.Module):
    """A convolution and a pooling that run along channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.along, self.last = nn.Conv2d(3, 8, 3), nn.Conv1d(1, 1, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.other, self.read = nn.Conv2d(3, 8, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        scores = y.mean((2, 3), keepdim=True).squeeze(-1).transpose(-1, -2)
        scale = self.along(scores).transpose(-1, -2).unsqueeze(-1)
        return self.last(y * scale.sigmoid()), self.read(F.max_pool1d(self.other(x).mean((2, 3)).unsqueeze(1), 2))


class ConvNextBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale, self.head = nn.Parameter(torch.ones(8)), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return self.head((x + y.permute(0, 3, 1, 2)).mean((-2, -1)))


class Contexts(nn.Module):
    """Checkpointing, autocast and no_grad, which become graphs inside the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(lambda z: self.first(z).relu(), x, use_reentrant=False)
        with torch.autocast("cpu", enabled=False):
            y = y * 2
        with torch.no_grad():
            shift = self.first.bias.abs() + 1
        return self.second(y / shift)


def sliced_halves(y: Tensor) -> Tensor:
    half = y.shape[-1] // 2
    return y[..., :half] * torch.sigmoid(y[..., half:])


def overwritten(y: Tensor) -> Tensor:
    result = y.new_zeros(y.shape[0], y.shape[1])
    result[:, :] = y
    result += 1
    return result


def duplicated(y: Tensor) -> Tensor:
    return torch.cat([y, y.relu()], dim=-1)


def outer(y: Tensor) -> Tensor:
    return (y[:, :, None] * y[:, None, :]).flatten(1)


# What may happen between two layers, with the width that the second reads; and what pins their axis, and why.
FINE = {
    "halves": (sliced_halves, 6, 3),
    "overwritten": (overwritten, 6, 6),
    "duplicated": (duplicated, 6, 12),
    "tiled": (lambda y: y.repeat(1, 2), 6, 12),
    "interleaved": (lambda y: y.repeat_interleave(2, dim=1), 6, 12),
    "glu": (lambda y: F.glu(y, dim=-1), 6, 3),
    "chunks": (lambda y: torch.mul(*y.chunk(2, dim=1)), 6, 3),
    "viewed": (lambda y: y.view(y.size(0), y.size(1), 1).squeeze(-1), 6, 6),
    "flattened": (lambda y: y.unsqueeze(1).expand(-1, 2, -1).flatten(1), 6, 12),
    "single": (lambda y: y if y.shape[1] == 1 else y + 1, 6, 6),
    "compared with itself": (lambda y: y if y.shape == y.abs().shape else y + 1, 6, 6),
    "no positions": (lambda y: y[:, :], 6, 6),
    "counted": (lambda y: y.reshape(y.numel() // y.shape[1], -1), 6, 6),
    "moved": (lambda y: y.movedim(1, 0).t().contiguous(), 6, 6),
    "clamped": (lambda y: torch.where(y > 0, y, y.new_ones(y.shape) * y.clamp(-1, 1)), 6, 6),
}
PINNING = {
    "literal view": (lambda y: y.view(-1, 6), 6, 6, "size written as a number in 'view'"),
    "literal slice": (lambda y: torch.cat([y[:, :2], y[:, 2:6]], 1), 6, 6, "size written as a number in 'slice'"),
    "literal split": (lambda y: torch.cat(y.split([2, 4], 1), 1), 6, 6, "size written as a number in 'split"),
    "negative slice": (lambda y: y[:, -6:], 6, 6, "size written as a number in 'slice'"),
    "root of the size": (lambda y: y / math.sqrt(y.shape[-1]), 6, 6, "its size is used as a number or compared"),
    "power of the size": (lambda y: y * y.shape[-1] ** -0.5, 6, 6, "its size is used as a number or compared"),
    "times the size": (lambda y: y * y.shape[-1], 6, 6, "its size is an argument of 'mul'"),
    "quotient by the size": (lambda y: y * (1.0 / y.shape[-1]), 6, 6, "its size is used as a number or compared"),
    "logarithm of the size": (lambda y: y * math.log(y.shape[-1]), 6, 6, "its size is used as a number or compared"),
    "root of the count": (lambda y: y / y.numel() ** 0.5, 6, 6, "its size is used as a number or compared"),
    "count of the shape": (lambda y: y / y.shape.numel(), 6, 6, "its size is used as a number or compared"),
    "length": (lambda y: (y.t() * len(y.t())).t(), 6, 6, "its size is used as a number or compared"),
    "loop": (lambda y: y + sum(range(y.shape[1])), 6, 6, "its size is used as a number or compared"),
    "branch": (lambda y: y if y.shape[1] == 6 else y + 1, 6, 6, "its size is used as a number or compared"),
    "half the size": (lambda y: y * (y.shape[-1] >> 1), 6, 6, "its size is used as a number or compared"),
    "softmax": (lambda y: y.softmax(-1), 6, 6, "'softmax' runs along it"),
    "cumulated": (lambda y: y.cumsum(-1), 6, 6, "'cumsum' runs along it"),
    "flipped": (lambda y: y.flip(1), 6, 6, "'flip' runs along it"),
    "mean": (lambda y: y + y.mean(1, keepdim=True), 6, 6, "'mean' averages over it"),
    "picked": (lambda y: y[:, [2, 0, 1, 3, 5, 4]], 6, 6, "positions are picked by 'index'"),
    "selected": (lambda y: y + y[:, 2:3] + y[:, 0, None], 6, 6, "a position is picked by number in 'select'"),
    "numbered": (lambda y: y + torch.arange(6), 6, 6, "positions are numbered by 'arange'"),
    "stepped": (lambda y: torch.stack([y[:, ::2], y[:, 1::2]], -1).flatten(1), 6, 6, "positions are skipped"),
    "outer product": (outer, 6, 36, "appears twice in one axis"),
    "padded": (lambda y: F.pad(y, (1, 1)), 6, 8, "padding on this axis"),
    "normed": (lambda y: F.layer_norm(y, y.shape[1:]), 6, 6, "'layer_norm' averages over it"),
    "unknown": (lambda y: torch.cdist(y, y) @ y, 6, 6, "the operator 'cdist' is not understood"),
    "constant": (lambda y: y + torch.tensor([1.0, 2, 3, 4, 5, 6]), 6, 6, "a constant of the graph"),
}
