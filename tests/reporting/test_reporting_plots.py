"""Plots are drawn, the same each time, for everything that a run can leave."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_reporting_tables import layer, make_run

from setpoint.reporting import compare_plot, first_layer_plot, group_runs, layers_plot, training_plot

GREY = (0x9A, 0x9A, 0x9A)


def row(epoch: int, phase: str, requested: float | None = 0.5) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "phase": phase,
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
