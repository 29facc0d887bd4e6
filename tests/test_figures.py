"""The figures in the README are those of the committed results."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_readmes_table_is_made_from_the_results():
    rows = runpy.run_path(str(ROOT / "benchmarks" / "readme_table.py"))["rows"]()
    assert len(rows) > 10
    assert "\n".join(rows) in (ROOT / "README.md").read_text(encoding="utf-8")
