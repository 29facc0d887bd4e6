"""Plots are drawn, the same each time, for everything that a run can leave."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from test_reporting_tables import layer, make_run, make_text_run

import setpoint.reporting.plots
from setpoint.reporting import compare_plot, first_layer_plot, group_runs, layers_plot, training_plot

GREY = (0x9A, 0x9A, 0x9A)


def row(epoch: int, phase: str, requested: float | None = 0.5) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "phase": phase,
        "validation_loss": 2.0 / epoch,
        "validation_accuracy": 0.9 + 0.01 * epoch,
        "sparsity": 0.2 * epoch,
        "requested": requested,
    }


def pixels(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path).convert("RGB"))


def grey_share(path: Path) -> float:
    return float((pixels(path) == GREY).all(-1).mean())


@pytest.mark.parametrize("requested", [0.5, None])
@pytest.mark.parametrize("epochs", [1, 3])
def test_training(tmp_path: Path, epochs: int, requested: float | None) -> None:
    phases = ("dense", "sparsify", "frozen")
    rows = [row(i + 1, phases[i], requested) for i in range(epochs)]
    for name in ("a", "b"):
        training_plot(rows, tmp_path / name, dense=rows, chosen=epochs, title="title")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert pixels(tmp_path / "a").std() > 10


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, instead of their files."""
    drawn: list[Figure] = []
    monkeypatch.setattr(setpoint.reporting.plots, "save_figure", lambda figure, path: drawn.append(figure))
    return drawn


def run_rows(requested: float | None = 0.5) -> list[dict[str, Any]]:
    """Of a run of five epochs that sparsifies from step 5 to step 25."""
    return [row(i + 1, phase, requested) for i, phase in enumerate(("sparsify",) * 2 + ("frozen",) * 3)]


def updates(**gauges: tuple[float, float, float]) -> list[dict[str, float]]:
    common = [(10, 0.25, 0.125), (15, 0.375, 0.25), (20, 0.5, 0.5)]
    return [
        {"step": step, "asked": asked, "zeros": zeros} | {name: values[i] for name, values in gauges.items()}
        for i, (step, asked, zeros) in enumerate(common)
    ]


def lines(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def shades(axes: Any) -> list[tuple[str, float, float]]:
    names = {"#ffffff": "dense", "#fdf3e1": "sparsify", "#e8f1f8": "frozen"}
    boxes = [(names[to_hex(patch.get_facecolor())], patch.get_extents()) for patch in axes.patches]
    edges = axes.transData.inverted()
    return [(name, *(round(edges.transform((x, 0))[0], 6) for x in (box.x0, box.x1))) for name, box in boxes]


def test_sparsity_is_drawn_update_by_update(figures: list[Figure], tmp_path: Path) -> None:
    training_plot(run_rows(), tmp_path / "a", updates=updates(), sparsify=(5, 25))
    upper, lower = figures[0].axes
    epochs = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3, 4, 5]
    found = lines(lower)
    assert found["asked for by now"] == (epochs, [0.0, 0.0, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert found["zeros at the last update"] == (
        epochs,
        pytest.approx([0.0, 0.0, 0.125, 0.25, 0.5, 0.6, 0.6, 0.8, 1.0]),
    )
    assert lines(upper)["sparse"][0] == [1, 2, 3, 4, 5]
    assert [text.get_text() for text in lower.texts] == ["dense", "sparsify", "frozen"]
    for axes in (upper, lower):
        assert axes.get_xlim() == (0.0, 5.5)
        assert shades(axes) == [("dense", 0.0, 0.5), ("sparsify", 0.5, 2.5), ("frozen", 2.5, 5.5)]


def test_without_updates_it_is_drawn_epoch_by_epoch(figures: list[Figure], tmp_path: Path) -> None:
    training_plot(run_rows(), tmp_path / "a", sparsify=(5, 25))
    upper, lower = figures[0].axes
    assert lines(lower)["asked for by now"] == ([1, 2, 3, 4, 5], [0.5] * 5)
    assert lines(lower)["zeros at the last update"][0] == [1, 2, 3, 4, 5]
    for axes in (upper, lower):
        assert axes.get_xlim() == (0.5, 5.5)
        assert shades(axes) == [("sparsify", 0.5, 2.5), ("frozen", 2.5, 5.5)]


def test_a_model_of_text_is_drawn_in_bits_per_byte(figures: list[Figure], tmp_path: Path) -> None:
    training_plot(run_rows(), tmp_path / "a", dense=run_rows()[:4], chosen=5, task="language modelling")
    training_plot(run_rows(), tmp_path / "a", chosen=5)
    text, images = (figure.axes[0] for figure in figures)
    found = lines(text)
    bits = [2.0 / (epoch * math.log(2)) for epoch in range(1, 6)]
    assert found["sparse"] == ([1, 2, 3, 4, 5], pytest.approx(bits))
    assert found["dense twin"] == ([1, 2, 3, 4], pytest.approx(bits[:4]))
    assert found["chosen: 0.577"] == ([5], pytest.approx(bits[4:]))
    assert (text.get_ylabel(), images.get_ylabel()) == ("validation bits per byte", "validation accuracy")
    low, high = text.get_ylim()
    assert low < bits[4]
    assert high > bits[0]


def test_losses_that_are_no_numbers_are_left_out(figures: list[Figure], tmp_path: Path) -> None:
    diverged = [{**r, "validation_loss": value} for r, value in zip(run_rows(), (2.0, math.inf, math.nan))]
    for dense in (run_rows(), diverged[1:]):
        training_plot(diverged, tmp_path / "a", dense=dense, task="language modelling")
    training_plot(diverged[1:], tmp_path / "a", task="language modelling")
    low, high = figures[1].axes[0].get_ylim()
    assert low < 2.0 / math.log(2) < high < 4
    assert figures[2].axes[0].get_ylim() == (0.0, 1.0)


def test_phases_that_take_no_step_are_left_out(figures: list[Figure], tmp_path: Path) -> None:
    rows = [row(1, "sparsify"), row(2, "sparsify"), row(3, "frozen")]
    training_plot(rows, tmp_path / "a", updates=updates(), sparsify=(0, 30))
    assert shades(figures[0].axes[1]) == [("sparsify", 0.0, 3.0), ("frozen", 3.0, 3.5)]
    assert lines(figures[0].axes[1])["zeros at the last update"][0][-2:] == [3.0, 3]


def test_a_run_that_is_sparse_from_the_start_is_drawn_so(figures: list[Figure], tmp_path: Path) -> None:
    rows = [row(1, "sparsify"), row(2, "sparsify"), row(3, "frozen")]
    drawn = [{"step": step, "asked": 0.5, "zeros": 0.5} for step in (0, 10, 20)]
    training_plot(rows, tmp_path / "a", updates=drawn, sparsify=(0, 25))
    epochs, zeros = lines(figures[0].axes[1])["zeros at the last update"]
    assert epochs[:3] == [0.0, 1.0, 2.0]
    assert zeros[:3] == [0.5, 0.5, 0.5]


def test_nothing_is_asked_for_where_there_is_no_budget(figures: list[Figure], tmp_path: Path) -> None:
    training_plot(run_rows(None), tmp_path / "a", updates=updates(), sparsify=(5, 25))
    assert set(lines(figures[0].axes[1])) == {"zeros at the last update"}


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ((0.01, 0.1, 1.01), "log"),
        ((0.01, 0.1, 1.0), "linear"),
        ((0.0, 0.1, 1000.0), "linear"),
        ((-1.0, 0.1, 1000.0), "linear"),
        ((float("nan"), 0.01, 1000.0), "log"),
        ((float("nan"),) * 3, "linear"),
    ],
)
def test_gauges_have_a_panel_of_their_own(
    values: tuple[float, float, float], scale: str, figures: list[Figure], tmp_path: Path
) -> None:
    training_plot(run_rows(), tmp_path / "a", updates=updates(first=values, second=(0.5, 0.5, 0.5)), sparsify=(5, 25))
    _, lower, gauges = figures[0].axes
    assert gauges.get_yscale() == scale
    found = lines(gauges)
    assert list(found) == ["first", "second"]
    assert found["first"][0] == [1.0, 1.5, 2.0]
    assert found["first"][1] == pytest.approx(values, nan_ok=True)
    assert [text.get_text() for text in gauges.get_legend().get_texts()] == ["first", "second"]
    assert shades(gauges) == shades(lower)
    assert (lower.get_xlabel(), gauges.get_xlabel()) == ("", "epoch")


def test_the_same_updates_give_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        training_plot(run_rows(), tmp_path / name, updates=updates(strength=(1e-3, 0.1, 5.0)), sparsify=(5, 25))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    training_plot(run_rows(), tmp_path / "c", updates=updates(), sparsify=(5, 25))
    assert pixels(tmp_path / "a").shape[0] > 1.2 * pixels(tmp_path / "c").shape[0]


def test_other_costs_than_weights_have_a_panel_of_their_own(figures: list[Figure], tmp_path: Path) -> None:
    training_plot(run_rows(), tmp_path / "a", updates=updates(gauge=(1, 2, 3)), sparsify=(5, 25), cost="flops")
    _, zeros, asked, gauges = figures[0].axes
    assert list(lines(zeros)) == ["zeros at the last update"]
    assert list(lines(asked)) == ["flops asked to go by now"]
    assert lines(asked)["flops asked to go by now"][1] == [0.0, 0.0, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert list(lines(gauges)) == ["gauge"]


def bars(axes: Any) -> list[float]:
    return [patch.get_width() for patch in axes.patches]


def test_layers_are_drawn_by_zeros_or_by_the_units_they_keep(figures: list[Figure], tmp_path: Path) -> None:
    layers = [layer("fc1.weight", 100, 0.9), layer("fc2.weight", 500, 0.9)]
    for unit, cost in (("weight", "flops"), ("2:4", "params"), ("row", "units"), ("channel", "flops")):
        layers_plot(layers, tmp_path / "a", unit=unit, cost=cost)
    weights, pattern, rows, channels = (figure.axes[0] for figure in figures)
    for axes in (weights, pattern):
        assert (axes.get_xlabel(), bars(axes)) == ("zeros", pytest.approx([0.9, 0.5]))
        assert lines(axes)["asked for"] == ([0.9, 0.9], [0, 1])
    for axes in (rows, channels):
        assert (axes.get_xlabel(), bars(axes)) == ("units kept", pytest.approx([0.1, 0.5]))
        assert "1 of 10 units kept" in axes.texts[0].get_text()
    assert lines(rows)["asked for"][0] == pytest.approx([0.1, 0.1])
    assert lines(channels) == {}  # operations are not on the axis of units


def test_layers_grow_with_their_number(tmp_path: Path) -> None:
    layers_plot([layer("fc1.weight", 100, 0.9)], tmp_path / "one")
    layers_plot([layer(f"fc{i}.weight", 100) for i in range(20)], tmp_path / "many")
    assert pixels(tmp_path / "many").shape[0] > 3 * pixels(tmp_path / "one").shape[0]


@pytest.mark.parametrize(
    ("shape", "image"),
    [
        ((8, 3, 3, 3), (3, 32, 32)),
        ((300, 784), (1, 28, 28)),
        ((20, 48), (3, 4, 4)),
        ((10, 33), (1, 8, 8)),
        ((6, 4, 5), (1, 8, 8)),
        ((1, 1), ()),
    ],
)
def test_exact_zeros_are_grey(shape: tuple[int, ...], image: tuple[int, ...], tmp_path: Path) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 3
    first_layer_plot(weight, tmp_path / "dense", shape=image, name="w")
    first_layer_plot(torch.zeros(shape), tmp_path / "zero", shape=image, name="w")
    first_layer_plot(weight * 1e-30, tmp_path / "tiny", shape=image, name="w")
    legend = grey_share(tmp_path / "dense")
    assert grey_share(tmp_path / "zero") > 5 * legend
    assert grey_share(tmp_path / "tiny") == pytest.approx(legend, abs=0.002)


def test_comparison_with_and_without_twins(tmp_path: Path) -> None:
    runs = [
        make_run(method, sparsity, seed)
        for method in ("gsp", "magnitude")
        for sparsity in (0.8, 0.9)
        for seed in (0, 1)
    ]
    compare_plot(group_runs(runs), tmp_path / "with.png")
    compare_plot(group_runs([make_run(dense=None)]), tmp_path / "without.png")
    compare_plot(group_runs([make_text_run()]), tmp_path / "text.png")
    assert not np.array_equal(pixels(tmp_path / "text.png"), pixels(tmp_path / "with.png"))
    assert pixels(tmp_path / "with.png").std() > 10


def test_baselines_are_drawn_in_black_and_leave_the_methods_their_colours(tmp_path: Path) -> None:
    runs = [make_run(method, sparsity) for method in ("a", "b") for sparsity in (0.8, 0.9)]
    compare_plot(group_runs(runs), tmp_path / "solid.png")
    compare_plot(group_runs(runs), tmp_path / "dashed.png", dashed=["a"])
    ink, blue, orange = (0x22, 0x22, 0x22), (0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)
    solid, dashed = pixels(tmp_path / "solid.png"), pixels(tmp_path / "dashed.png")
    found = [[bool((image == colour).all(-1).any()) for colour in (blue, orange)] for image in (solid, dashed)]
    assert found == [[True, True], [True, False]]
    assert (dashed == ink).all(-1).sum() > 1.2 * (solid == ink).all(-1).sum()
