"""The script that measures updates: it goes on where it stopped, and the quieter of two measurements stays."""

import json
import sys
from pathlib import Path

import pytest

from setpoint.bench import Row

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"
FIGURES = {"with an update": 8.0, "between": 1.0, "frozen": 2.0, "dense step": 1.5}


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Runs it with these arguments; answers what was measured, and what was written."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import update
    import update_training

    measured, cores = [], []

    def cost(stack, unit, methods, pace):
        measured.append((stack.count, unit, *methods))
        return [Row(stack.title, methods[0], 8.0, "one pass", 1.0, FIGURES)]

    monkeypatch.setattr(update, "update_cost", cost)
    monkeypatch.setattr(update, "update_peak", lambda *_: 0.5)
    monkeypatch.setattr(update, "measured_quietly", lambda measure, patience: (measure(), cores.pop()))
    monkeypatch.setattr(update, "train", lambda *_: update_training.Trained(1.5, 2.0, 9.25, 0.9))

    def run(*arguments, others=()):
        measured.clear()
        cores[:] = list(others)[::-1]
        monkeypatch.setattr(sys, "argv", ["update.py", "--results", str(tmp_path), *arguments])
        update.main()
        return list(measured), json.loads((tmp_path / "update.json").read_text())

    run.module = update
    run.page = tmp_path / "update.md"
    return run


ONE = ("--sizes", "101M", "--units", "row", "--methods")


def test_what_is_there_is_measured_again_only_if_disturbed(script):
    found, content = script(*ONE, "gsp", "static", others=[0.0, 0.8])
    assert found == [(24 * 2048**2, "row", "gsp"), (24 * 2048**2, "row", "static")]
    assert [row["method"] for row in content["rows"]] == ["gsp", "static"]
    assert content["rows"][0]["figures"]["resident"] == 0.5
    assert script(*ONE, "gsp", "static", "--missing")[0] == []
    found, content = script(*ONE, "gsp", "static", others=[0.9])
    assert [method for *_, method in found] == ["static"]
    assert content["rows"][1]["other_cores"] == 0.8
    assert script(*ONE, "static", others=[0.3])[1]["rows"][1]["other_cores"] == 0.3
    assert "| gsp | 8.000 | one pass |" in script.page.read_text()


def test_trainings_stand_beside_them(script):
    script(*ONE, "gsp", others=[0.0])
    _, content = script("--train", "1B", "gsp")
    assert len(content["rows"]) == 1
    (row,) = content["trainings"]
    assert (row["size"], row["unit"], row["method"], row["seconds_a_step"]) == ("1B", "weight", "gsp", 1.5)
    assert "| `gsp` | 1B | weight | 1.5 | 9.2 |" in script.page.read_text()


def test_what_does_not_fit_is_left_out(script, monkeypatch, capsys):
    script(*ONE, "gsp", others=[0.0])
    monkeypatch.setattr(script.module, "_available", lambda: 9 * 10**9)
    found, content = script("--sizes", "1B", "--units", "row", "--methods", "gsp")
    assert found == []
    assert len(content["rows"]) == 1
    assert "1B row gsp: left out, it takes about 11 GB and 9 are free" in capsys.readouterr().out
