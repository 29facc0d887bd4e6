"""The command `setpoint bench`: its table, its file and its errors."""

import json
import math

import pytest
from rich.console import Console

from setpoint.bench import Row
from setpoint.bench.short import PARTS
from setpoint.cli import main


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("part", "against"),
    [
        ("projection", {"one pass", "torch.sort", "cooper, dual step", "multiplier, one step"}),
        ("step", {"dense step"}),
        ("update", {"one pass"}),
        ("memory", {"the parameters", "the input"}),
        ("scaling", {"one pass", "a slope of 1"}),
    ],
)
def test_every_part_at_the_smallest_size(part, against, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("setpoint.bench.short.method_names", lambda: ("gsp", "l0", "static"))
    assert run("bench", part, "--scale", "1e-4", "--json", "figures.json") == 0
    out = capsys.readouterr().out
    assert "against" in out
    assert "figures: figures.json" in out
    written = json.loads((tmp_path / "figures.json").read_text())
    assert {"processor", "cores", "threads", "torch"} <= set(written["machine"])
    assert written["device"] == "cpu"
    found = [Row(**row) for row in written["rows"]]
    assert {row.against for row in found} <= against
    assert all(row.work in out for row in found if len(row.work) < 30)
    assert all(row.ratio is not None or row.note for row in found)
    assert all(math.isfinite(value) for row in found for value in row.figures.values())


def test_all_is_every_part(monkeypatch, capsys):
    asked = []

    def measured(name):
        def measure(device, scale):
            asked.append((name, device.type, scale))
            yield [Row("a case", name, 1.5, "another")]

        return measure

    for name in tuple(PARTS):
        monkeypatch.setitem(PARTS, name, measured(name))
    assert run("bench") == 0
    assert asked == [(name, "cpu", 0.25) for name in ("projection", "step", "update", "memory", "scaling")]
    assert "1.500" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scale", "0"], "scale=0.0 was asked for; above 0"),
        (["--device", "abacus"], "device='abacus' is no device"),
        (["--json", "nowhere/figures.json"], "nowhere is no folder"),
        (["everything"], "everything"),
    ],
)
def test_what_is_refused(arguments, words, capsys):
    assert run("bench", *arguments) != 0
    err = capsys.readouterr().err
    assert words in err
    assert err.startswith("error: ")


def test_the_table_fits_a_terminal(monkeypatch, capsys):
    from setpoint.bench import ratios_tables

    table = next(ratios_tables([Row("case", "work", 2.0, "one pass", 3.0, {"off": 0.0})]))
    console = Console(width=80)
    console.print(table)
    assert "2.000" in capsys.readouterr().out
