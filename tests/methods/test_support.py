"""Supports that are drawn before the first step: how many, which, and what is refused."""

import pytest
import torch
from moving_runs import schedule, sparsify
from torch import nn

import setpoint
from setpoint.methods import RigL, SparseEvolutionaryTraining, Static

from nets import build, mlp, train


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_counts_are_exact_from_the_draw_on_and_not_so_on_average(method):
    for seed in range(5):
        model, opt, _ = build("mlp")
        options = {"seed": seed}
        made = setpoint.methods.make_method(method, **options)
        sparsifier = setpoint.Sparsifier(model, opt, method=made, target=0.7, scope="erk", steps=100)
        assert sum(int(m.sum()) for m in sparsifier.masks.values()) == round(0.3 * 776)
        assert [int(m.sum()) for m in sparsifier.masks.values()] == [int(b.kept) for b in sparsifier._budgets]
        assert sparsifier.phase == "sparsify"
        assert sparsifier.sparsity == pytest.approx(1 - round(0.3 * 776) / 776)


def test_counts_above_what_float32_can_count():
    """Beyond 2^24 a float32 count moves in steps of two and more."""
    model = nn.Linear(4099, 4099, bias=False)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = 2**24 + 1
    assert int(torch.tensor(float(kept), dtype=torch.float32)) != kept
    sparsifier = setpoint.Sparsifier(model, opt, method="static", target=setpoint.Target(params=kept), steps=4)
    assert int(sparsifier.masks["weight"].sum()) == kept


def test_a_random_support_is_spread_evenly_and_does_not_touch_torchs_generator():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(200, 150), nn.Linear(150, 100), nn.Linear(100, 60))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    state = torch.get_rng_state()
    sparsifier = setpoint.Sparsifier(model, opt, method="static", target=0.9, steps=10)
    assert torch.equal(state, torch.get_rng_state())
    for mask in sparsifier.masks.values():
        assert float(mask.float().mean()) == pytest.approx(0.1, abs=0.02)
        assert bool(mask.any(0).float().mean() > 0.9)
    assert not torch.equal(sparsifier.masks["0.weight"].flatten()[:6000], sparsifier.masks["2.weight"].flatten())


@pytest.mark.parametrize("grown", [False, True])
def test_rows_of_any_cost_are_equally_likely(grown):
    """The cut ranks by magnitude for its cost; what is drawn or grown at random must not prefer what is cheap."""
    model = nn.Sequential(nn.Linear(100, 300), nn.Linear(300, 300, bias=False))
    kept = torch.zeros(2)
    for seed in range(5):
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        method = SparseEvolutionaryTraining(seed=seed, drop_fraction=1.0, decay="constant")
        sparsifier = setpoint.Sparsifier(
            model, opt, method=method, target=0.5, unit="row", steps=10, schedule=schedule(9, 1)
        )
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for _ in range(2 * grown):
            opt.step()
        kept += torch.tensor([float(k.float().mean()) for k in sparsifier._support.kept]) / 5
        sparsifier.remove()
    assert torch.allclose(kept, torch.tensor(0.5), atol=0.05)


def test_the_first_support_can_be_that_of_the_largest_magnitudes():
    model, opt, _ = build("mlp")
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    sparsifier = setpoint.Sparsifier(
        model, opt, method=Static(initial="magnitude"), target=0.7, scope="uniform", steps=9
    )
    for name, mask in sparsifier.masks.items():
        magnitudes = weights[name].abs()
        assert magnitudes[mask].min() >= magnitudes[~mask].max()
        assert torch.equal(model.get_parameter(name), weights[name] * mask)


def test_static_never_moves():
    model, opt, batch, sparsifier = sparsify("static", interval=None)
    masks = sparsifier.masks
    train(model, opt, batch, 45)
    assert all(torch.equal(masks[n], m) for n, m in sparsifier.masks.items())
    assert [row["step"] for row in sparsifier.history] == [0]


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
@pytest.mark.parametrize(
    "phases", [setpoint.Schedule(), setpoint.Schedule("constant"), setpoint.Schedule("one-shot", begin=0)]
)
def test_phases_in_which_the_model_would_be_dense_are_refused(method, phases):
    model, opt, _ = build("mlp")
    with pytest.raises(
        ValueError, match=f"method '{method}' is sparse from the first step on.*'constant' with begin=0"
    ):
        setpoint.Sparsifier(model, opt, method=method, target=0.5, steps=40, schedule=phases)
    assert all(bool((p != 0).all()) for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"initial": "large"}, "rigl initial='large' is none of random, magnitude"),
        ({"drop_fraction": 0.0}, r"drop_fraction=0.0 must lie in \(0, 1\]"),
        ({"decay": "quartic"}, "decay='quartic' is none of cosine, linear, constant"),
        ({"begin": "one"}, "begin='one' is none of zero, random"),
        ({"second_moment": "max"}, "second_moment='max' is none of zero, mean"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(ValueError, match=words):
        RigL(**options)


def test_weights_that_are_no_numbers_are_refused_at_once():
    model, opt, _ = build("mlp")
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"'2\.weight' holds NaN or infinite values"):
        setpoint.Sparsifier(model, opt, method="static", target=0.5, steps=40)
    assert all(bool((p != 0).all()) for p in model.parameters())


def test_the_interval_gives_what_has_grown_some_time():
    def interval(steps, **more):
        model = mlp()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        return setpoint.Sparsifier(model, opt, method="rigl", target=0.5, steps=steps, **more).timeline.interval

    assert interval(2_000) == 100
    assert interval(100_000) == 750
    assert interval(400) == 30
    assert interval(10) == 1
    assert interval(2_000, schedule=schedule(1500, 7)) == 7
