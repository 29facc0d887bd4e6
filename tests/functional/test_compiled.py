"""Compiled kernels beside the eager path that they stand in for: the same projections, to the rounding of the dtype."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from setpoint.functional import WarmStart, compiled, project_gsp
from setpoint.functional.gsp import mean_hoyer

pytestmark = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="needs numba (the extra fast)")


def draw(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    scales = (1.0, 0.1, 30.0, 1e-3)
    return [scales[i % 4] * torch.randn(shape, generator=generator, dtype=dtype) for i, shape in enumerate(shapes)]


SETS = {
    "long vectors": draw((300_000,), (70_000,), (1_000,)),
    "rows": draw((512, 1024)),
    "short rows": draw((40_000, 9)),
    "of all kinds": [*draw((200_000,), (100, 700), (5,), (1,), (0,)), torch.zeros(3, 400)],
    "float64": draw((150_000,), (300, 64), dtype=torch.float64),
    "transposed": [draw((700, 300))[0].t()],
}


@pytest.fixture
def eager(monkeypatch):
    """Calls a function with the kernels out of the way."""

    def call(function, *args, **more):
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "installed", lambda: False)
            return function(*args, **more)

    return call


@pytest.mark.parametrize("scale_invariant", [False, True])
@pytest.mark.parametrize("sparsity", [0.3, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("name", SETS)
def test_both_paths_agree(name, sparsity, scale_invariant, eager):
    vectors = SETS[name]
    assert compiled.usable([v for v in vectors if v.numel()])
    before = [v.clone() for v in vectors]
    fast = project_gsp(vectors, sparsity, scale_invariant=scale_invariant)
    slow = eager(project_gsp, vectors, sparsity, scale_invariant=scale_invariant)
    assert all(torch.equal(v, b) for v, b in zip(vectors, before))
    # What both leave open of the equation (1e-10, 1e-9) is seen enlarged where few entries are left.
    for one, other in zip(fast, slow):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if one.numel():
            assert float((one - other).abs().amax()) <= 1e-6 * float(other.abs().amax())
        assert torch.equal(one == 0, other == 0)
    rows = [f.reshape(-1, f.shape[-1]).abs() for f in fast if f.numel()]
    assert mean_hoyer(rows) == pytest.approx(sparsity, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_in_single(dtype, eager):
    vectors = [v.to(dtype) for v in draw((300_000,), (400, 50))]
    fast, slow = project_gsp(vectors, 0.8), eager(project_gsp, vectors, 0.8)
    assert all(torch.equal(f, s) and f.dtype == dtype for f, s in zip(fast, slow))
    assert project_gsp(vectors, 0.8, out=vectors)[0] is vectors[0]
    assert all(torch.equal(f, v) for f, v in zip(fast, vectors))


def test_in_place_and_warm_starts_give_the_same(eager):
    vectors = [v.clone() for v in SETS["long vectors"]]
    warm = WarmStart()
    fresh = project_gsp(vectors, 0.9, warm=warm)
    found = warm.multiplier
    assert found is not None
    again = WarmStart(1.01 * found)
    versions = [v._version for v in vectors]
    answer = project_gsp(vectors, 0.9, warm=again, out=vectors)
    assert again.multiplier == pytest.approx(found, rel=1e-6)
    for one, other, vector, version in zip(fresh, answer, vectors, versions):
        assert other is vector
        assert vector._version > version
        assert torch.allclose(one, other, rtol=1e-6, atol=0.0)
    cold = WarmStart()
    eager(project_gsp, SETS["long vectors"], 0.9, warm=cold)
    assert cold.multiplier == pytest.approx(found, rel=1e-6)


def test_weights_in_training_are_projected_in_place():
    weight = torch.nn.Parameter(draw((500, 400))[0])
    with torch.no_grad():
        assert project_gsp(weight, 0.8, out=weight) is weight
    assert mean_hoyer([weight.detach().abs()]) == pytest.approx(0.8, abs=1e-7)
    spread = torch.zeros(500, 800)[:, ::2]
    assert project_gsp(weight.detach() + 1.0, 0.8, out=spread) is spread
    assert mean_hoyer([spread.abs()]) == pytest.approx(0.8, abs=1e-7)
    with pytest.raises(ValueError, match=r"out has tensors of .*; the vectors are of"):
        project_gsp(weight, 0.8, out=torch.empty(400, 500))


def test_vectors_of_which_little_or_nothing_is_left_keep_an_entry(eager):
    # The paper's form drives vectors of small norm to a single entry each, long and short.
    vectors = [*draw((300_000,)), *draw((100_000,)), *draw((2, 30))]
    vectors[1] *= 1e-6
    vectors[2] *= 1e-6
    fast, slow = project_gsp(vectors, 0.9), eager(project_gsp, vectors, 0.9)
    assert int((fast[1] != 0).sum()) == 1
    assert (fast[2] != 0).sum(1).eq(1).all()
    assert all(torch.equal(f != 0, s != 0) for f, s in zip(fast, slow))
    rows = [v.reshape(-1, v.shape[-1]).abs() for v in vectors]
    from setpoint.functional.gsp import gsp_factors

    for matrix, row, other in zip(gsp_factors(rows, 0.9), rows, fast):
        assert torch.allclose(matrix * row, other.abs().reshape(row.shape), rtol=1e-5, atol=0.0)


def test_ties_are_filled_as_the_eager_path_does(eager):
    tied = [torch.ones(1000, 200)]
    assert all(torch.equal(f, s) for f, s in zip(project_gsp(tied, 0.5), eager(project_gsp, tied, 0.5)))


def test_sparse_enough_vectors_stay_as_they_are():
    sparse = torch.zeros(400, 500)
    sparse[:, 0] = 1.0
    assert torch.equal(project_gsp(sparse, 0.9), sparse)
    dense = draw((400, 500))[0]
    assert torch.equal(project_gsp(dense, 0.0), dense)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(300_000,), (600, 500)])
def test_what_is_not_finite_is_refused_by_name(bad, shape):
    vectors = draw((10,), shape)
    vectors[1].view(-1)[-3] = bad
    with pytest.raises(ValueError, match="tensor 1 holds NaN or infinite"):
        project_gsp(vectors, 0.9)


@pytest.mark.parametrize("scale", [1e-200, 1e200, 1e-30])
def test_scales_at_which_squares_vanish_or_overflow(scale):
    vector = draw((200_000,), dtype=torch.float64)[0] * scale
    projected = project_gsp(vector, 0.8)
    assert mean_hoyer([projected.abs().reshape(1, -1)]) == pytest.approx(0.8, abs=1e-8)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_the_result(threads):
    before = torch.get_num_threads()
    one = project_gsp(SETS["of all kinds"], 0.9)
    try:
        torch.set_num_threads(threads)
        other = project_gsp(SETS["of all kinds"], 0.9)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, other))


def test_a_fault_in_one_thread_is_raised():
    from setpoint.functional.compiled.threads import on_threads

    def work(piece):
        if piece == 7:
            raise RuntimeError("piece 7")
        return piece

    assert on_threads(lambda piece: 2 * piece, list(range(50))) == [2 * piece for piece in range(50)]
    with pytest.raises(RuntimeError, match="piece 7"):
        on_threads(work, list(range(50)))


def test_without_numba_the_package_works_all_the_same():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'numba' else find(name, *a)\n"
        "import torch; from setpoint.functional import project_gsp\n"
        "print(int((project_gsp(torch.randn(200_000), 0.9) != 0).sum()) > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "True"
