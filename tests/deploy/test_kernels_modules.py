"""Layers on sparse kernels compute what the dense ones do, for every shape, and refuse what they cannot."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from setpoint.budget import count_flops
from setpoint.deploy.kernels import SparseLinear, SparsePointwise
from setpoint.deploy.kernels.matrices import CompressedMatrix, nbytes
from setpoint.deploy.kernels.narrow import NarrowMatrix
from setpoint.deploy.kernels.registry import KERNELS
from setpoint.deploy.kernels.semi_structured import SemiStructuredMatrix, groups_above_two

CPU_KERNELS = [name for name in KERNELS if name != "2:4"]
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def sparse_weight(rows, columns, zeros, dtype=torch.float32, seed=0):
    """Random zeros, and two rows and a column that are empty."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=dtype)
    weight *= torch.rand(rows, columns, generator=generator) >= zeros
    weight[[0, rows // 2]] = 0.0
    weight[:, columns // 3] = 0.0
    return weight


def linear_pair(weight, bias, kernel):
    dense = nn.Linear(weight.shape[1], weight.shape[0], bias=bias, dtype=weight.dtype)
    with torch.no_grad():
        dense.weight.copy_(weight)
    return dense, SparseLinear(KERNELS[kernel].build(weight), dense.bias)


def assert_same(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if expected.numel():
        assert float((found - expected).abs().max()) <= 1e-5 * max(float(expected.abs().max()), 1e-30)


@torch.no_grad()
def assert_computes_like(sparse, dense, *inputs):
    for x in inputs:
        found = sparse(x)
        assert found.is_contiguous()
        assert_same(found, dense(x))


@pytest.mark.parametrize("kernel", CPU_KERNELS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.97, 1.0])
def test_linear_equals_dense(kernel, bias, zeros):
    dense, sparse = linear_pair(sparse_weight(96, 64, zeros), bias, kernel)
    wide = torch.randn(7, 128)
    shapes = [(1, 64), (2, 64), (33, 64), (64,), (3, 5, 64), (1, 1, 64), (2, 1, 3, 64), (0, 64), (4, 0, 64)]
    strided = [wide[:, ::2], torch.randn(64, 9).t(), torch.randn(5, 3, 64).transpose(0, 1), wide[:1, ::2]]
    assert_computes_like(sparse, dense, *(torch.randn(s) for s in shapes), *strided)
    assert torch.equal(sparse.matrix.to_dense(), dense.weight)
    assert torch.equal(sparse.weight if kernel == "narrow" else sparse.weight.to_dense(), dense.weight)
    assert (sparse.in_features, sparse.out_features) == (64, 96)


@pytest.mark.parametrize("kernel", ["csr", "narrow"])
def test_double_precision_and_shapes_that_no_block_divides(kernel):
    dense, sparse = linear_pair(sparse_weight(13, 7, 0.6, torch.float64), True, kernel)
    with torch.no_grad():
        for n in (1, 2, 30):
            x = torch.randn(n, 7, dtype=torch.float64)
            torch.testing.assert_close(sparse(x), dense(x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kernel", CPU_KERNELS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_equals_convolution(kernel, bias, axes, stride):
    weight = sparse_weight(32, 64, 0.8)
    dense = CONVOLUTIONS[axes](64, 32, 1, stride=stride, bias=bias)
    with torch.no_grad():
        dense.weight.copy_(weight.reshape(dense.weight.shape))
    sparse = SparsePointwise(KERNELS[kernel].build(weight), dense.bias, dense.stride)
    sizes = (5, 4, 3)[:axes]
    inputs = [torch.randn(n, 64, *sizes) for n in (1, 3)] + [torch.randn(64, *sizes), torch.randn(0, 64, *sizes)]
    inputs += [torch.randn(*sizes, 3, 64).movedim((-2, -1), (0, 1)), torch.randn(2, 128, *sizes)[:, ::2]]
    assert_computes_like(sparse, dense, *inputs)


def test_the_parts_are_what_they_are_said_to_be():
    weight = sparse_weight(64, 32, 0.9)
    csr, bsr = CompressedMatrix(weight), CompressedMatrix(weight, block=4)
    stored = int(torch.count_nonzero(weight))
    assert (csr.compressed.dtype, csr.indices.dtype) == (torch.int32, torch.int32)
    assert csr.values.shape == (stored,)
    assert nbytes(csr) == 4 * (65 + 2 * stored)
    assert bsr.values.shape[1:] == (4, 4)
    assert len(bsr.compressed) == 17
    narrow = NarrowMatrix(weight)
    assert narrow.values.shape == (int(weight.any(1).sum()), int(weight.any(0).sum()))
    assert torch.equal(narrow.to_dense(), weight)
    whole = NarrowMatrix(torch.ones(3, 2))
    assert whole.kept_rows is None
    assert whole.kept_columns is None


def test_what_does_not_suit_a_weight_is_refused_with_the_reason():
    refusal = {name: kernel.refusal for name, kernel in KERNELS.items()}
    dense, sparse = torch.randn(12, 8), sparse_weight(12, 8, 0.8)
    assert "0% of the entries are zero, fewer than 40%" in refusal["csr"](dense)
    assert refusal["csr"](sparse) is None
    assert "bfloat16 on cpu; possible: float32, float64" in refusal["csr"](sparse.bfloat16())
    assert "16x16 blocks do not divide 12x8" in refusal["bsr16"](sparse)
    assert "0% of the 4x4 blocks are zero" in refusal["bsr4"](dense)
    scattered = torch.zeros(16, 16)
    scattered[::8, ::8] = 1.0
    assert "blocks that are not zero are 6% full, less than 33%" in refusal["bsr4"](scattered)
    assert refusal["bsr4"](torch.zeros(16, 16)) is None
    assert "0 of 12 rows and 0 of 8 columns are zero" in refusal["narrow"](dense)
    assert refusal["narrow"](sparse) is None
    assert "run on cuda, not cpu" in refusal["2:4"](sparse)


def test_groups_that_break_the_pattern_are_counted():
    weight = torch.tensor([[1.0, 0, 2, 0, 3, 4, 5, 0], [1, 1, 1, 1, 0, 0, 0, 0]])
    assert groups_above_two(weight) == 2
    assert groups_above_two(weight[:, :6]) == 1
    assert groups_above_two(torch.zeros(3, 5)) == 0


def build(kernel="csr"):
    return linear_pair(sparse_weight(64, 32, 0.9), True, kernel)


@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_state_moves_with_the_usual_means(kernel):
    _, sparse = build(kernel)
    x = torch.randn(5, 32)
    expected = sparse(x)
    assert not list(sparse.parameters())
    other = copy.deepcopy(sparse)
    for buffer in other.buffers():
        if buffer.is_floating_point():
            buffer.zero_()
    assert not torch.equal(other(x), expected)
    other.load_state_dict(sparse.state_dict())
    for twin in (other, pickle.loads(pickle.dumps(sparse)), copy.deepcopy(sparse).to("cpu")):
        assert torch.equal(twin(x), expected)
    assert_same(copy.deepcopy(sparse).double()(x.double()).float(), expected)


def test_it_is_for_inference_only():
    dense, sparse = build()
    x = torch.randn(3, 32)
    with pytest.raises(RuntimeError, match="SparseLinear is for inference"):
        copy.deepcopy(sparse).train()(x)
    with pytest.raises(RuntimeError, match="computes no gradients"):
        sparse(x.requires_grad_())
    with torch.no_grad():
        assert_same(sparse(x), dense(x))
    with torch.inference_mode():
        assert_same(sparse(x), dense(x))


def test_inputs_that_do_not_fit_are_refused():
    _, sparse = build()
    with pytest.raises(ValueError, match=r"holds torch.float32 and was given torch.float64"):
        sparse(torch.randn(3, 32).double())
    with pytest.raises(ValueError, match=r"takes inputs \(\*, 32\), not \(3, 31\)"):
        sparse(torch.randn(3, 31))
    pointwise = SparsePointwise(sparse.matrix, None, (1, 1))
    with pytest.raises(ValueError, match=r"takes inputs \(n, 32, \*, \*\), not \(3, 31, 2, 2\)"):
        pointwise(torch.randn(3, 31, 2, 2))


@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_autocast_leaves_it_in_full_precision(kernel):
    dense, sparse = build(kernel)
    x = torch.randn(4, 32)
    with torch.no_grad():
        expected, reduced = dense(x), dense(x.bfloat16().float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_same(sparse(x), expected)
            assert_same(sparse(x.bfloat16()), reduced)
        assert_same(sparse(x), expected)


class Net(nn.Module):
    def __init__(self, kernel):
        super().__init__()
        self.convolution = SparsePointwise(KERNELS[kernel].build(sparse_weight(32, 64, 0.9)), torch.randn(32), (1, 1))
        self.linear = SparseLinear(KERNELS[kernel].build(sparse_weight(64, 32, 0.9)), torch.randn(64))
        self.last = nn.Linear(64, 3)

    def forward(self, x):
        return self.last(torch.relu(self.linear(torch.relu(self.convolution(x)).mean((2, 3)))))


@pytest.mark.parametrize("kernel", ["csr", "bsr4", "narrow"])
@torch.no_grad()
def test_models_are_exported(kernel):
    net, x = Net(kernel).eval(), torch.randn(3, 64, 4, 4)
    batch = torch.export.Dim("batch", min=2, max=512)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for n in (3, 17):
        x = torch.randn(n, 64, 4, 4)
        assert_same(loaded(x), net(x))


@pytest.mark.parametrize("kernel", ["csr", "narrow"])
@torch.no_grad()
def test_models_are_compiled_in_one_piece(kernel):
    net = Net(kernel).eval()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (3, 17, 1):
        x = torch.randn(n, 64, 4, 4)
        assert_same(compiled(x), net(x))


@pytest.mark.parametrize(("block", "n", "bias", "transposed"), [(None, 5, True, True), (4, 1, False, True)])
def test_the_operators_keep_torchs_rules(block, n, bias, transposed):
    matrix = CompressedMatrix(sparse_weight(64, 32, 0.9), block)
    parts = (matrix.compressed, matrix.indices, matrix.values, torch.randn(64) if bias else None)
    torch.library.opcheck(torch.ops.setpoint.compressed_linear.default, (torch.randn(n, 32), *parts, transposed))
    torch.library.opcheck(torch.ops.setpoint.compressed_pointwise.default, (torch.randn(n, 32, 6), *parts))


def test_operations_are_counted_by_what_is_stored():
    stored = [int(torch.count_nonzero(sparse_weight(*shape, 0.9))) for shape in ((32, 64), (64, 32))]
    by_parameter, rest = count_flops(Net("csr").eval(), torch.randn(5, 64, 4, 4))
    assert rest == 2 * 5 * (16 * stored[0] + stored[1])
    assert by_parameter == {"last.weight": 2 * 5 * 64 * 3}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_semi_structured_on_cuda(dtype, bias):
    weight = torch.randn(256, 128, device="cuda", dtype=dtype).view(256, 32, 4)
    weight[..., 1::2] = 0.0
    weight = weight.view(256, 128)
    assert SemiStructuredMatrix.refusal(weight) is None
    assert "groups of four" in SemiStructuredMatrix.refusal(torch.randn_like(weight))
    dense = nn.Linear(128, 256, bias=bias, device="cuda", dtype=dtype)
    with torch.no_grad():
        dense.weight.copy_(weight)
        sparse = SparseLinear(SemiStructuredMatrix(weight), dense.bias)
        for shape in ((1, 128), (5, 128), (64, 128), (2, 8, 128)):
            x = torch.randn(shape, device="cuda", dtype=dtype)
            torch.testing.assert_close(sparse(x), dense(x), rtol=2e-2, atol=2e-2)
        x = torch.randn(64, 128, device="cuda", dtype=dtype)
        assert torch.equal(copy.deepcopy(sparse)(x), sparse(x))
        compiled = torch.compile(sparse, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), sparse(x))
    assert nbytes(sparse.matrix) < 0.6 * nbytes(dense)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kernel", ["csr", "narrow"])
def test_rows_on_cuda(kernel):
    dense, sparse = linear_pair(sparse_weight(64, 32, 0.9, torch.float64), True, kernel)
    dense, sparse = dense.cuda(), sparse.cuda()
    with torch.no_grad():
        for n in (1, 5):
            x = torch.randn(n, 32, device="cuda", dtype=torch.float64)
            assert_same(sparse(x), dense(x))
