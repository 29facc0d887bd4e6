"""The figures in the README and the docs are those of the committed results."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_readmes_table_is_made_from_the_results():
    rows = runpy.run_path(str(ROOT / "benchmarks" / "readme_table.py"))["rows"]()
    assert len(rows) > 10
    assert "\n".join(rows) in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def updates():
    return runpy.run_path(str(ROOT / "benchmarks" / "update_tables.py"))


def test_the_docs_table_of_updates_is_made_from_the_results(updates):
    text = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    lines = updates["docs_table"](updates["committed"]())
    assert len(lines) > 10
    assert text.split(updates["BEGIN"])[1].split(updates["END"])[0] == "\n" + "\n".join(lines) + "\n"


def test_the_page_of_updates_is_made_from_the_results(updates):
    page = (ROOT / "benchmarks" / "results" / "update.md").read_text(encoding="utf-8")
    assert page == updates["page"](updates["committed"]())
