"""Small residual networks, one for each way of writing x + f(x), and for each way in which it is none."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Stack(nn.Module):
    """A linear layer, blocks, and another linear layer."""

    def __init__(self, *blocks: nn.Module, width: int = 12) -> None:
        super().__init__()
        self.first, self.blocks, self.last = nn.Linear(5, width), nn.ModuleList(blocks), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class Residual(nn.Module):
    """Any function beside the identity."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) + x


def perceptron(width: int = 12, inner: int = 7, end: nn.Module | None = None) -> nn.Sequential:
    layers = [nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)]
    return nn.Sequential(*layers, *([end] if end else []))


class Parallel(nn.Module):
    """Two branches in one sum, behind a norm each or behind one for both."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(12)
        self.norm2 = self.norm1 if shared else nn.LayerNorm(12)
        self.one, self.other, self.shared = nn.Linear(12, 12), nn.Linear(12, 12), shared

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        return self.one(normed) + torch.tanh(self.other(normed if self.shared else self.norm2(x))) + x


class Written(nn.Module):
    """Attention written out in the block: stacked projections, or keys and values for groups of queries."""

    def __init__(self, stacked: bool) -> None:
        super().__init__()
        self.norm, self.stacked = nn.LayerNorm(12), stacked
        if stacked:
            self.qkv = nn.Linear(12, 36)
        else:
            self.q, self.k, self.v = nn.Linear(12, 12), nn.Linear(12, 6), nn.Linear(12, 6)
        self.out = nn.Linear(12, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        y = self.norm(x)
        if self.stacked:
            q, k, v = self.qkv(y).view(batch, length, 3, 4, 3).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (f(y).view(batch, length, -1, 3).transpose(1, 2) for f in (self.q, self.k, self.v))
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).reshape(batch, length, width))


class InPlace(nn.Module):
    """As torchvision writes it: one ReLU for all, in place, and a sum in place."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class PreActivation(nn.Module):
    """What passes by has been through a ReLU in place, too."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.conv = nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.relu(x))


class Images(nn.Module):
    def __init__(self, *blocks: nn.Module, outputs: int = 4) -> None:
        super().__init__()
        self.conv, self.blocks, self.fc = nn.Conv2d(3, 4, 3, 1, 1), nn.Sequential(*blocks), nn.Linear(outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.conv(x)).mean((2, 3)))


class Scaled(nn.Module):
    """ConvNeXt's: a scale for each channel, which is a parameter of the block; and stochastic depth."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(4, 4, 7, 1, 3, groups=4), nn.LayerNorm(4)
        self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 4)
        self.gamma = nn.Parameter(torch.full((4,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)
        if self.training:
            y = y * torch.empty(len(y), 1, 1, 1).bernoulli_(0.8).div_(0.8)
        return x + y


class Several(nn.Module):
    """A block that is called by names and answers with a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention, self.scale = nn.LayerNorm(12), Answering(), 0.5

    def forward(self, x: Tensor) -> Tensor:
        y, weights = self.attention(key=torch.ones(3), hidden=self.norm(x), mask=None)
        assert weights is None
        return torch.add(x, y, alpha=self.scale)


class Answering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, hidden: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Tensor, None]:
        return self.outer(torch.sigmoid(self.inner(hidden)) * key.sum()), None


class Recurrent(nn.Module):
    """With a last map of its own, or none but the recurrent layer."""

    def __init__(self, out: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 8 if out else 12, batch_first=True)
        self.out = nn.Linear(8, 12) if out else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.lstm(x)[0]
        return x + (y if self.out is None else self.out(y))


class Picky(nn.Module):
    """Takes no numbers below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Stack(Residual(perceptron()))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting() and x.device.type != "meta" and bool((x < 0).any()):
            raise ValueError("below zero")
        return self.inner(x.sqrt())


class Leaking(nn.Module):
    """A value from inside the branch is answered as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.up, self.down = (
            nn.Linear(5, 6),
            nn.Linear(6, 3),
            nn.Linear(6, 4),
            nn.Linear(4, 6),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        inside = self.up(x)
        return self.last(x + self.down(inside)), inside


class Tapped(nn.Module):
    """The branch's result is answered as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.up = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        y = self.up(x)
        return self.last(x + y), y


class Repeated(nn.Module):
    """One block, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(5, 12), Residual(perceptron()), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(self.block(self.first(x))))


class Bare(nn.Module):
    """A branch whose weights are the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + x @ self.weight)


class Wide(nn.Module):
    """What is added is stretched."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.squeeze(x)


class Undecided(nn.Module):
    """Looks at values, so that it cannot run on tensors without any."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Residual(perceptron())

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting() and bool(x.isnan().any()):
            raise ValueError("NaN")
        return self.inner(x)


class Counted(nn.Linear):
    def count(self) -> int:
        return len(self.weight)


class Checking(nn.Module):
    """Asks its layers for what is not there without them: an answer, or entries to divide by."""

    def __init__(self, method: bool) -> None:
        super().__init__()
        self.up, self.down, self.method = Counted(12, 6), nn.Linear(6, 12), method

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x)) / (self.up.count() if self.method else self.up.weight.shape[0])


class Around(nn.Module):
    """A skip around blocks that have their own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.before, self.inner = nn.Linear(12, 12), inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(torch.relu(self.before(x)))


class Casting(nn.Module):
    """Blocks under autocast, which the exported graph has as a graph of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(5, 12), Residual(perceptron()), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = self.block(self.first(x))
        return self.last(x.float())


TOKENS, PICTURES = torch.zeros(2, 6, 5), torch.zeros(2, 3, 8, 8)


def encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True, norm_first=norm_first)
    return Stack(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


ENCODED = [f"blocks.0.layers.{i}.{name}" for i in range(2) for name in ("self_attn", "linear1")]
# Of each: how to make it, inputs, the branches that can go, and words from why others cannot.
NETS = {
    "residual": (lambda: Stack(Residual(perceptron()), Residual(nn.Linear(12, 12))), TOKENS,
                 ["blocks.0", "blocks.1"], {}),
    "parallel": (lambda: Stack(Parallel(False)), TOKENS, ["blocks.0.one", "blocks.0.other"], {}),
    "parallel, one norm": (lambda: Stack(Parallel(True)), TOKENS, ["blocks.0"], {}),
    "stacked": (lambda: Stack(Written(True)), TOKENS, ["blocks.0"], {}),
    "grouped": (lambda: Stack(Written(False)), TOKENS, ["blocks.0"], {}),
    "in place": (lambda: Images(InPlace(4, 4), InPlace(4, 6), outputs=6), PICTURES, ["blocks.0"],
                 {"blocks.1": "what it is added to is not its own input"}),
    "pre-activation": (lambda: Images(PreActivation(), PreActivation()), PICTURES, ["blocks.0", "blocks.1"], {}),
    "scaled": (lambda: Images(Scaled()), PICTURES, ["blocks.0"], {}),
    "several": (lambda: Stack(Several()), TOKENS, ["blocks.0"], {}),
    "recurrent": (lambda: Stack(Recurrent(True)), TOKENS, ["blocks.0"], {}),
    "recurrent alone": (lambda: Stack(Recurrent(False)), TOKENS, ["blocks.0"], {}),
    "picky": (Picky, TOKENS, ["inner.blocks.0"], {}),
    "pre-norm": (lambda: encoder(True), TOKENS, ENCODED, {}),
    "post-norm": (lambda: encoder(False), TOKENS, ENCODED, {}),
    "undecided": (lambda: Stack(Undecided()), TOKENS, ["blocks.0.inner"], {}),
    "around": (lambda: Stack(Around(Residual(perceptron()))), TOKENS, ["blocks.0.inner"],
               {"blocks.0.before": "its result is used elsewhere"}),
    "around nothing": (lambda: Stack(Around(Wide())), TOKENS, ["blocks.0"], {}),
    "casting": (Casting, TOKENS, ["block"], {}),
    "sigmoid": (lambda: Stack(Residual(perceptron(end=nn.Sigmoid()))), TOKENS, [],
                {"blocks.0.function": "not zero where all its weights are"}),
    "leaking": (Leaking, TOKENS, [], {"down": "a value inside of it (of 'up') is used elsewhere"}),
    "tapped": (Tapped, TOKENS, [], {"up": "its result is used elsewhere"}),
    "repeated": (Repeated, TOKENS, [], {"block": "its parameter 'block.function.0.weight' is used elsewhere"}),
    "bare": (Bare, TOKENS, [], {"the model": "in no modules"}),
    "wide": (lambda: Stack(Wide()), TOKENS, [], {"blocks.0.squeeze": "not the shape of what it is added to"}),
    "asking": (lambda: Stack(Checking(True)), TOKENS, [], {"blocks.0": "cannot be taken out: 'Module' object has no"}),
    "dividing": (lambda: Stack(Checking(False)), TOKENS, [], {"blocks.0": "does not compute what it does"}),
}  # fmt: skip
