"""Every example runs and keeps its promise."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def main_of(name):
    return runpy.run_path(str(EXAMPLES / name))["main"]


def test_own_loop():
    report = main_of("own_loop.py")(epochs=6)
    assert report.exact
    assert report.sparsity == pytest.approx(0.95, abs=1e-3)


def test_resume():
    assert main_of("resume.py")()


def test_filters_by_layer():
    report = main_of("filters_by_layer.py")()
    assert [(layer.units_kept, layer.units) for layer in report.layers] == [(12, 16), (16, 32)]


def test_lightning_module(tmp_path, monkeypatch):
    pytest.importorskip("lightning", reason="an extra")
    monkeypatch.chdir(tmp_path)
    assert main_of("lightning_module.py")().exact
