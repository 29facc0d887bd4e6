"""While it is watched, a forward pass runs as it always did, whatever it does with sizes."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from setpoint.wiring import check, derive

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))

USES = {
    "count": lambda y, s: y.shape.numel() == y.numel() == np.prod(y.shape),
    "factories": lambda y, s: torch.zeros(y.shape) + torch.ones(*y.shape) + torch.full(list(y.size()), 1.0),
    "loops and lists": lambda y, s: [None] * y.shape[0] + list(range(y.shape[0])) + [1, 2, 3][: y.shape[0]],
    "formatting": lambda y, s: f"{y.shape[1]:>3}" + str(y.shape) + repr(y.shape[0]),
    "grids": lambda y, s: torch.meshgrid(torch.arange(y.shape[2]), torch.ones(y.shape[3]).long(), indexing="ij"),
    "resampling": lambda y, s: F.interpolate(y[:, :, ::2, ::2], size=y.shape[2:]),
    "pooling": lambda y, s: F.adaptive_avg_pool2d(y, (y.shape[2] // 2, 1)),
    "padding": lambda y, s: F.pad(y, (0, y.shape[3] % 4, 0, -y.shape[2] % 4)),
    "rounding": lambda y, s: (math.ceil(y.shape[2] / 4), math.floor(y.shape[2]), round(y.shape[2]), abs(y.shape[2])),
    "membership": lambda y, s: y.shape[0] in (1, 2) and y.shape[1] in {8: "eight"},
    "tables": lambda y, s: s.table[s.width],
    "tensors": lambda y, s: torch.tensor([y.shape[0], y.shape[1]]) + torch.as_tensor(y.shape[2]),
    "scalars": lambda y, s: (y + y.shape[1], y.shape[1] - y, y**y.shape[0], y // y.shape[1], y.clamp(max=y.shape[1])),
    "types": lambda y, s: s.require(isinstance(y.shape[0], int), isinstance(y.shape, torch.Size)),
    "comparisons": lambda y, s: s.require(y.shape == torch.Size([2, 8, 6, 6]), y.shape[1:] == (8, 6, 6)),
    "sorting": lambda y, s: (sorted(y.shape), max(y.shape), min(y.shape), sum(y.shape), divmod(y.shape[1], 3)),
    "indexing": lambda y, s: (y[y.shape[0] - 1], y[:, torch.arange(y.shape[1])], y[..., : y.shape[-1] // 2]),
    "windows": lambda y, s: y.view(2, 8, y.shape[2] // 2, 2, -1, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, 8, 4),
    "attributes": lambda y, s: (y.split(s.sizes, 1), y.repeat(1, 1, s.pair[0], 1), torch.roll(y, s.width // 4, 2)),
    "functions": lambda y, s: (F.group_norm(y, s.width // 4), F.unfold(y, 3), F.normalize(y), F.instance_norm(y)),
    "symbolic functions": lambda y, s: (torch.sym_max(y.shape[0], 3), torch.sym_int(y.shape[2] / 2)),
    "copies": lambda y, s: (copy.deepcopy(y.shape), np.zeros(y.shape[1]), float(y.shape[1]), int(y.shape[1])),
    "keywords": lambda y, s: F.conv2d(y, torch.ones(8, 1, 3, 3), groups=y.size(dim=1), padding=s.pair),
    "attention": lambda y, s: F.scaled_dot_product_attention(y, y, y, scale=1 / y.shape[-1]),
    "writing": lambda y, s: y.clone().__setitem__((slice(None), slice(0, y.shape[1] // 2)), 0.0),
}  # fmt: skip


class Uses(nn.Module):
    def __init__(self, use) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 2)
        self.use, self.width, self.table, self.sizes, self.pair = use, 8, {8: "eight"}, [3, 5], (2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.use(y, self)
        return self.last(y.mean((2, 3)))

    @staticmethod
    def require(*conditions: bool) -> None:
        if not all(conditions):
            raise ValueError("a condition does not hold")


@pytest.mark.parametrize("case", USES)
def test_sizes_may_be_used_as_integers(case):
    model = Uses(USES[case])
    assert all(group.name.startswith("conv") for group in derive(model, X).groups)
    assert type(model.width) is int
    assert {type(n) for n in (*model.sizes, *model.pair)} == {int}


def test_what_a_forward_pass_keeps_is_plain_again():
    class Keeps(Uses):
        def forward(self, x):
            self.seen, self.shape = x.shape[1] * 2, x.shape
            return super().forward(x)

    model = Keeps(lambda y, s: None)
    derive(model, X)
    assert type(model.seen) is int
    assert {type(n) for n in model.shape} == {int}


def test_attributes_are_restored_when_the_trace_fails():
    model = Uses(lambda y, s: s.require(False))
    with pytest.raises(ValueError, match="a condition does not hold"):
        derive(model, X)
    assert type(model.width) is type(model.conv.groups) is int


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_weight_that_reads_the_channels_it_makes(groups):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=groups)
            self.last = nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.last(x + self.inner(x))

    model = Residual()
    wiring = derive(model, X)
    check(model, wiring, X)
    roles = {(s.axis, s.role) for g in wiring.groups for s in g.slices if s.tensor == "inner.weight"}
    assert roles == {(0, "produces")} | ({(1, "consumes")} if groups < 8 else set())
