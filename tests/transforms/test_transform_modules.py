"""The modules that stand in a layer's place: structure, what they compute, and how they fold."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transform_nets import SMALL, Residual, lively

from setpoint.transforms import Doped, Factorized, Parallel, fold, sparse_ift

GENERATOR = torch.Generator().manual_seed(0)
LAYERS = {
    "linear": (nn.Linear(7, 5), torch.randn(3, 4, 7, generator=GENERATOR)),
    "no bias": (nn.Linear(7, 5, bias=False), torch.randn(3, 7, generator=GENERATOR)),
    "conv1d": (nn.Conv1d(4, 6, 5, stride=2, padding=2), torch.randn(2, 4, 11, generator=GENERATOR)),
    "conv2d": (
        nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, padding_mode="circular"),
        torch.randn(2, 4, 9, 8, generator=GENERATOR),
    ),
    "same": (nn.Conv2d(4, 6, (3, 5), padding="same"), torch.randn(2, 4, 9, 8, generator=GENERATOR)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, bias=False), torch.randn(2, 4, 9, 8, generator=GENERATOR)),
    "conv3d": (nn.Conv3d(2, 3, 3, padding=1), torch.randn(2, 2, 4, 4, 4, generator=GENERATOR)),
}
MAKE = {
    "parallel": lambda layer: Parallel(layer, 3),
    "factorized": lambda layer: Factorized(layer, 5),
    "doped": lambda layer: Doped(layer, 2),
}


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    assert one.shape == other.shape
    one, other = one.detach(), other.detach()
    assert float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("layer", LAYERS)
def test_shapes_are_the_layers_and_fold_gives_a_layer_like_it(kind, layer):
    old, inputs = LAYERS[layer]
    made = MAKE[kind](old).eval()
    answer = made(inputs)
    assert answer.shape == old(inputs).shape
    folded = made.fold()
    assert type(folded) is type(old)
    assert folded.weight.shape == old.weight.shape
    same(folded(inputs), answer)
    assert (folded.bias is None) == (old.bias is None)
    settings = ("stride", "padding", "dilation", "groups", "padding_mode", "kernel_size")
    assert all(getattr(folded, s, None) == getattr(old, s, None) for s in settings)


def test_parallel_adds_up_its_branches():
    layer, inputs = nn.Linear(7, 5), torch.randn(3, 7)
    made = Parallel(layer, 3)
    expected = sum(F.linear(inputs, branch[0].weight, branch[0].bias) for branch in made.branches)
    same(made(inputs), expected)
    weights = [branch[0].weight for branch in made.branches]
    assert not any(torch.equal(a, b) for a, b in zip(weights, [*weights[1:], layer.weight]))
    assert made.sparse == [f"branches.{i}.0.weight" for i in range(3)]


def test_factorized_reads_with_the_kernel_and_writes_by_a_pointwise_layer():
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=1, groups=2)
    made = Factorized(layer, 5)
    assert (made.u.out_channels, made.u.stride, made.u.kernel_size, made.u.groups) == (10, (2, 2), (3, 3), 2)
    assert (made.v.in_channels, made.v.stride, made.v.kernel_size, made.v.groups) == (10, (1, 1), (1, 1), 2)
    assert made.u.bias is None
    assert made.v.bias is not None


@pytest.mark.parametrize(
    ("inner", "layer", "kinds"),
    [
        ("linear", nn.Linear(4, 6), []),
        ("norm", nn.Conv2d(4, 6, 3), [nn.BatchNorm2d]),
        ("norm", nn.Linear(4, 6), [nn.LayerNorm]),
        ("relu", nn.Conv3d(4, 6, 3), [nn.ReLU]),
        ("norm-relu", nn.Conv1d(4, 6, 3), [nn.BatchNorm1d, nn.ReLU]),
        ("norm-relu", nn.Linear(4, 6), [nn.LayerNorm, nn.ReLU]),
    ],
)
def test_what_stands_between_factors_and_in_branches(inner, layer, kinds):
    made = [lively(m).eval() for m in (Factorized(layer, 5, inner), Parallel(layer, 3, inner=inner))]
    assert [type(m) for m in made[0].inner] == [type(m) for m in list(made[1].branches[2])[1:]] == kinds
    inputs = torch.randn(2, 4, *[7] * (layer.weight.ndim - 2))
    for module in made:
        answer, folded = module(inputs), module.fold()
        assert answer.shape == layer(inputs).shape
        if kinds in ([], [nn.BatchNorm2d]):
            same(folded(inputs), answer)
            assert folded.weight.shape == layer.weight.shape
        else:
            assert folded is None
    assert len({id(p) for m in made[1].branches for p in m.parameters()}) == len(list(made[1].parameters()))


def test_a_norm_takes_the_outputs_of_a_transposed_linear():
    layer = pytest.importorskip("transformers").pytorch_utils.Conv1D(6, 4)
    for made in (Factorized(layer, 5, "norm"), Parallel(layer, 2, inner="norm-relu")):
        assert made(torch.randn(2, 3, 4)).shape == (2, 3, 6)


def test_a_branch_computes_its_norm_before_its_activation():
    norm, inputs = nn.BatchNorm2d(6), torch.randn(4, 4, 5, 5)
    made = lively(Parallel(nn.Conv2d(4, 6, 3), 2, norm, "norm-relu"))
    expected = sum(F.relu(branch[1](branch[0](inputs))) for branch in made.branches)
    assert [type(m) for m in made.branches[0]] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    same(made(inputs), expected)


@pytest.mark.parametrize(
    "make", [lambda layer, inner: Factorized(layer, 5, inner), lambda *a: Parallel(a[0], 2, None, a[1])]
)
def test_what_cannot_stand_there(make):
    with pytest.raises(ValueError, match="inner='tanh' is none of linear, norm, relu, norm-relu"):
        make(nn.Linear(4, 6), "tanh")


def test_doped_computes_the_sum_and_keeps_its_product_dense():
    layer, inputs = nn.Linear(7, 5), torch.randn(3, 7)
    made = Doped(layer, 2)
    expected = F.linear(inputs, made.layer.weight, made.layer.bias) + inputs @ made.u.weight.T @ made.v.weight.T
    same(made(inputs), expected)
    # The released code masks all three.
    assert made.sparse == ["layer.weight"]


def test_dtype_device_mode_and_constant_biases_are_the_layers():
    layer = nn.Conv2d(4, 6, 3, dtype=torch.float64).eval().to(memory_format=torch.channels_last)
    nn.init.constant_(layer.bias, 0.25)
    for make in MAKE.values():
        made = make(layer)
        assert all(p.dtype == torch.float64 for p in made.parameters())
        assert not any(m.training for m in made.modules())
        biases = [p for name, p in made.named_parameters() if name.endswith("bias")]
        assert biases
        assert all(bool((bias == 0.25).all()) for bias in biases)
        kernels = [m.weight for m in made.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in kernels)
    with torch.device("meta"):
        layer = nn.Linear(3, 4)
    assert all(p.is_meta for make in MAKE.values() for p in make(layer).parameters())


def test_each_branch_has_the_norm_that_followed_and_the_model_folds_to_its_old_sizes():
    model = Residual()
    made = sparse_ift(model, "parallel", 0.75, example_inputs=SMALL).model
    assert [type(m) for m in made.conv1.branches[0]] == [nn.Conv2d, nn.BatchNorm2d]
    assert len({id(branch[1]) for branch in made.conv1.branches}) == len(made.conv1.branches) == 4
    assert type(made.norm1) is nn.Identity
    # No norm takes what this one makes alone.
    assert [type(m) for m in made.skip.branches[0]] == [nn.Conv2d]
    made.train()
    made(SMALL)
    lively(made).eval()
    folded = fold(made)
    same(folded(SMALL), made(SMALL))
    shapes = {name: p.shape for name, p in model.named_parameters() if ".norm" not in name}
    assert {type(m) for m in folded.modules()} == {type(m) for m in model.modules()} | {nn.Identity}
    assert all(p.shape == shapes[name] for name, p in folded.named_parameters() if name in shapes)


@pytest.mark.parametrize("kind", ["factorized", "doped"])
def test_models_fold_to_the_layers_they_had(kind):
    model = Residual()
    made = lively(sparse_ift(model, kind, 0.75, example_inputs=SMALL).model).eval()
    folded = fold(made)
    same(folded(SMALL), made(SMALL))
    assert {n: p.shape for n, p in folded.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    # Depthwise convolutions are left.
    assert sum(type(m) in (Factorized, Doped) for m in made.modules()) == 5


def test_branches_fold_to_what_any_of_them_keeps():
    made = Parallel(nn.Conv2d(8, 8, 3, bias=False), 4, nn.BatchNorm2d(8))
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(8, 8, 3, 3, generator=generator) < 0.25 for _ in range(4)]
    with torch.no_grad():
        for branch, mask in zip(made.branches, masks):
            branch[0].weight.mul_(mask)
    kept = torch.stack(masks).any(0)
    assert torch.equal(made.eval().fold().weight != 0, kept)
    assert 0.6 < float(kept.float().mean()) < 0.75


def test_what_cannot_fold():
    with pytest.raises(ValueError, match="nothing to fold: there are no replaced layers"):
        fold(Residual())
    wide = sparse_ift(nn.Sequential(*(nn.Linear(16, 16) for _ in range(5))), "wide", example_inputs=torch.zeros(1, 16))
    with pytest.raises(ValueError, match="nothing to fold"):
        fold(wide.model)
    made = sparse_ift(Residual(), "factorized", 0.5, inner="norm-relu", example_inputs=SMALL).model
    with pytest.raises(ValueError, match="an activation or a layer norm in every replaced layer"):
        fold(made)
    bare = Parallel(nn.Conv2d(2, 2, 1), 2, nn.BatchNorm2d(2, track_running_stats=False))
    with pytest.raises(ValueError, match="without running statistics"):
        fold(nn.Sequential(bare))


def test_a_module_that_stands_in_two_places_is_replaced_in_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.again = self.inner

        def forward(self, x):
            return self.last(F.relu(self.again(F.relu(self.inner(F.relu(self.stem(x)))))))

    result = sparse_ift(Twice(), "factorized", 0.75, example_inputs=torch.zeros(2, 4))
    assert result.model.inner is result.model.again
    assert [(la.name, la.flops_per_entry) for la in result.layers] == [("inner.u.weight", 8), ("inner.v.weight", 8)]
    folded = fold(result.model)
    assert folded.inner is folded.again
    assert type(folded.inner) is nn.Linear
