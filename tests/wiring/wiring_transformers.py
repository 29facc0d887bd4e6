"""Small transformers, one for each way of wiring heads, neurons and the stream between them."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """As it is written for teaching: one stacked projection, literal sizes computed from attributes."""

    def __init__(self, width: int, heads: int, head_width: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.head_width, self.inner, self.fused = heads, head_width, heads * head_width, fused
        self.qkv, self.out = nn.Linear(width, 3 * self.inner), nn.Linear(self.inner, width)
        self.register_buffer("mask", torch.ones(1, 1, 16, 16).tril().bool(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.size()
        q, k, v = self.qkv(x).split(self.inner, dim=2)
        q = q.view(batch, length, self.heads, self.head_width).transpose(1, 2)
        k = k.view(batch, length, self.heads, self.head_width).transpose(1, 2)
        v = v.view(batch, length, self.heads, self.head_width).transpose(1, 2)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            scores = scores.masked_fill(~self.mask[:, :, :length, :length], float("-inf"))
            y = F.softmax(scores, dim=-1) @ v
        return self.out(y.transpose(1, 2).contiguous().view(batch, length, self.inner))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, head_width: int, fused: bool) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads, head_width, fused)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """A GPT-like language model whose last layer is its embedding."""

    def __init__(self, fused: bool = True, tied: bool = True) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(30, 12), nn.Embedding(16, 12)
        self.blocks = nn.ModuleList(Block(12, 3, 4, fused) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 30, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class GroupedAttention(nn.Module):
    """Queries share keys and values by groups, with rotary positions."""

    def __init__(self, width: int, heads: int, groups: int, head_width: int, way: str) -> None:
        super().__init__()
        self.head_width, self.way, self.copies = head_width, way, heads // groups
        self.q = nn.Linear(width, heads * head_width, bias=False)
        self.k = nn.Linear(width, groups * head_width, bias=False)
        self.v = nn.Linear(width, groups * head_width, bias=False)
        self.o = nn.Linear(heads * head_width, width, bias=False)
        self.register_buffer("frequencies", 1.0 / 100 ** (torch.arange(0, head_width, 2).float() / head_width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length = x.shape[:2]
        angles = torch.arange(length)[:, None] * self.frequencies[None]
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos(), angles.sin()
        q = rotate(self.q(x).view(batch, length, -1, self.head_width).transpose(1, 2), cos, sin)
        k = rotate(self.k(x).view(batch, length, -1, self.head_width).transpose(1, 2), cos, sin)
        v = self.v(x).view(batch, length, -1, self.head_width).transpose(1, 2)
        if self.way == "repeat":
            k, v = k.repeat_interleave(self.copies, dim=1), v.repeat_interleave(self.copies, dim=1)
        elif self.way == "expand":
            k, v = self.repeated(k), self.repeated(v)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.way == "sdpa")
        return self.o(y.transpose(1, 2).reshape(batch, length, -1))

    def repeated(self, x: Tensor) -> Tensor:
        batch, groups, length, width = x.shape
        x = x[:, :, None, :, :].expand(batch, groups, self.copies, length, width)
        return x.reshape(batch, groups * self.copies, length, width)


class RootMeanSquare(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Gated(nn.Module):
    """Two ways to write a gated feed-forward layer: two matrices, or one that is cut in half."""

    def __init__(self, width: int, inner: int, stacked: bool) -> None:
        super().__init__()
        self.stacked = stacked
        self.up = nn.Linear(width, 2 * inner if stacked else inner, bias=False)
        self.gate = None if stacked else nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            a, b = self.up(x).chunk(2, dim=-1)
            return self.down(a * F.silu(b))
        return self.down(self.up(x) * F.silu(self.gate(x)))


class GroupedDecoder(nn.Module):
    def __init__(self, way: str, stacked: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(30, 12)
        self.norm1, self.attention = RootMeanSquare(12), GroupedAttention(12, 6, 3, 4, way)
        self.norm2, self.mlp = RootMeanSquare(12), Gated(12, 10, stacked)
        self.head = nn.Linear(12, 30, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        x = x + self.attention(self.norm1(x))
        return self.head(x + self.mlp(self.norm2(x)))


class Plain(nn.Module):
    """Parameters without modules, scalars among the outputs, tensors that nothing reads, a module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(9, 4))
        self.first_bias = nn.Parameter(torch.randn(9))
        self.shared = nn.Linear(9, 9)
        self.scale = nn.Parameter(torch.rand(9))
        self.second = nn.Parameter(torch.randn(9, 7))
        self.last = nn.Linear(7, 3)
        self.unread = nn.Linear(5, 5)
        self.lonely = nn.Linear(9, 7)  # only its weight is read

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(F.linear(x, self.first, self.first_bias))
        x = x + self.scale * self.shared(self.shared(x))
        y = x @ self.second + F.linear(x, self.lonely.weight)
        return self.last(torch.where(y > 0, y, 0.1 * y)), (y**2).sum()


class Einsum(nn.Module):
    """Heads as an axis of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(3, 8, 4)) for _ in range(3))
        self.o = nn.Parameter(torch.randn(3, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btw,hwd->bhtd", x, w) for w in (self.q, self.k, self.v))
        scores = torch.einsum("bhtd,bhsd->bhts", q, k).softmax(-1)
        return torch.einsum("bhtd,hdw->btw", torch.einsum("bhts,bhsd->bhtd", scores, v), self.o)
