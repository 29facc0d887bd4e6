"""Tables and numbers as people read them."""

import io
import math
from typing import Any

import pytest
from rich.console import Console, RenderableType

from setpoint.reporting import compare_table, group_runs, run_tables
from setpoint.reporting.words import duration, percent, size


def layer(name: str, kept: int, requested: float | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "shape": [10, 100],
        "units": 10,
        "units_kept": kept // 100,
        "params": 1000,
        "params_kept": kept,
        "requested": requested,
        "sparsity": 1 - kept / 1000,
    }


def make_run(
    method: str = "gsp", sparsity: float | None = 0.9, seed: int = 0, test: float = 0.95, dense: float | None = 0.97
) -> dict[str, Any]:
    kept = round(1000 * (1 - (sparsity or 0.5)))
    config = {"model": "mlp", "data": "digits", "width": 1.0, "method": method, "options": {}, "sparsity": sparsity}
    config |= {"hoyer": None, "unit": "weight", "scope": "global", "cost": "params", "seed": seed, "epochs": 9}
    config |= {"context": 128}
    report = {"unit": "weight", "scope": "global", "cost": "params", "requested": sparsity or 1.0, "hoyer": None}
    report |= {"attainable": 1 - kept / 1000, "achieved": 1 - kept / 1000, "sparsity": 1 - kept / 1000, "exact": True}
    report |= {"params": 2000, "params_kept": 2 * kept}
    return {
        "config": config,
        "data": "digits",
        "task": "classification",
        "report": {
            **report,
            "left_dense": {"head.weight": "it is frozen"},
            "left_params": {"head.weight": 100},
            "model_params": 2100,
            "layers": [layer("fc1.weight", kept), layer("a.very.long.name.of.a.layer", kept)],
        },
        "parameters": 2100,
        "parameters_kept": 2 * kept + 100,
        "dense_validation_accuracy": dense,
        "dense_test_accuracy": dense,
        "dense_validation_loss": None if dense is None else math.log(2),
        "dense_test_loss": None if dense is None else math.log(4),
        "validation_accuracy": test,
        "test_accuracy": test,
        "validation_loss": math.log(2) / 2,
        "test_loss": math.log(4) * (2 - test),
        "chosen_epoch": 7,
        "bytes": 2_000,
        "dense_bytes": 9_000,
        "steps": 100,
        "seconds": 65.0,
        "steps_per_second": 12.3,
    }


def text(renderable: RenderableType, width: int = 110) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_runs_tables_say_what_was_asked_and_reached() -> None:
    shown = text(run_tables(make_run()))
    for words in (
        "mlp on digits: gsp, unit weight, scope global, seed 0",
        "90 % of the weights",
        "90.0000 % (exact: yes)",
        "97.00 % dense, 95.00 % sparse (-2.00 points)",
        "300 of 2,100 (14.29 %)",
        "9.0 kB dense, 2.0 kB sparse (4.5 times smaller)",
        "7 of 9",
        "1:05, 12 steps/s",
        "200 / 2,000",
    ):
        assert words in shown


def test_without_a_twin_there_is_nothing_to_compare_with() -> None:
    assert "dense," not in text(run_tables(make_run(dense=None))).replace("kB dense,", "")


def test_patterns_and_hoyer_sparsities_are_asked_for_in_words() -> None:
    pattern = make_run(sparsity=None)
    pattern["config"]["unit"] = pattern["report"]["unit"] = "2:4"
    shown = text(run_tables(pattern))
    assert "all that 2:4 allows" in shown
    assert "groups at 2:4" in shown
    assert "10 / 20" in shown  # groups that are pruned, not those that are not
    assert "keeps its 2 largest" in shown
    hoyer = make_run(sparsity=None)
    hoyer["config"]["hoyer"], hoyer["report"]["hoyer"] = 0.8, 0.8
    shown = text(run_tables(hoyer))
    assert "average Hoyer sparsity 0.8" in shown
    assert "Hoyer 0.800000, 50.00 % of the weights zero" in shown


def test_what_stays_dense_is_said_with_its_reason() -> None:
    assert "left dense: 1 parameter, 4.8 % of the model: it is frozen: head.weight" in text(run_tables(make_run()))


def test_units_are_counted_where_they_are_not_weights() -> None:
    run = make_run()
    assert "units kept" not in text(run_tables(run))
    run["report"]["unit"] = "row"
    assert "units kept" in text(run_tables(run))


def test_weights_that_two_groups_share_are_counted_once_in_all() -> None:
    run = make_run(sparsity=0.5)
    run["report"] |= {"unit": "channel", "params": 1700, "params_kept": 700}
    shown = text(run_tables(run))
    assert "700 / 1,700" in shown
    assert "1,000 / 2,000" not in shown
    assert "in the rows of both" in shown
    assert "in the rows of both" not in text(run_tables(make_run()))


def test_what_is_attainable_stands_beside_what_was_asked() -> None:
    run = make_run()
    run["report"] |= {"attainable": 0.875, "achieved": 0.875}
    lines = [" ".join(line.split()) for line in text(run_tables(run)).splitlines()]
    assert "asked 90 % of the weights" in lines
    assert "attainable 87.5000 %" in lines
    assert "achieved 87.5000 % (exact: yes)" in lines


def test_seeds_are_taken_together_and_methods_kept_apart() -> None:
    runs = [make_run(seed=seed, test=0.9 + 0.02 * seed) for seed in range(3)]
    runs += [make_run("magnitude", seed=1), make_run(sparsity=0.8, dense=None)]
    groups = group_runs(runs)
    assert [(g.label, g.asked, g.runs) for g in groups] == [
        ("gsp", "80 %", 1),
        ("gsp", "90 %", 3),
        ("magnitude", "90 %", 1),
    ]
    middle = groups[1]
    assert (middle.test.mean, middle.test.low, middle.test.high) == pytest.approx((0.92, 0.9, 0.94))
    assert groups[0].dense is None
    shown = text(compare_table(groups))
    assert "92.00 %" in shown
    assert "(90.00-94.00)" in shown
    assert "-5.00" in shown
    assert max(len(line) for line in shown.splitlines()) <= 100


def test_what_differs_besides_the_seed_is_in_the_label() -> None:
    other = make_run()
    other["config"]["unit"] = "row"
    other["config"]["options"] = {"vectors": "row"}
    assert [g.label for g in group_runs([make_run(), other])] == ["gsp, unit weight", "gsp, vectors=row, unit row"]


def make_text_run(**options: Any) -> dict[str, Any]:
    return {**make_run(**options), "task": "language modelling"}


def test_a_model_of_text_is_judged_by_bits_per_byte() -> None:
    shown = text(run_tables(make_text_run(test=1.0)))
    assert "test bits per byte " in shown
    assert "2.000 dense, 2.000 sparse (+0.000 bits)" in shown
    assert "1.000 dense, 0.500 sparse (-0.500 bits)" in shown
    assert "accuracy" not in shown
    alone = text(run_tables(make_text_run(dense=None)))
    assert "2.100" in alone
    assert "bits)" not in alone


def test_runs_on_text_are_compared_in_bits() -> None:
    groups = group_runs([make_text_run(seed=seed, test=1.0 - 0.1 * seed) for seed in range(3)])
    assert (groups[0].test.mean, groups[0].test.low, groups[0].test.high) == pytest.approx((2.2, 2.0, 2.4))
    shown = text(compare_table(groups))
    for words in ("bits per byte", "2.200", "(2.000-2.400)", "2.000", "+0.200"):
        assert words in shown
    assert "points" not in shown


def test_runs_of_two_tasks_are_not_compared() -> None:
    with pytest.raises(ValueError, match="of classification and language modelling"):
        group_runs([make_run(), make_text_run()])


def test_words() -> None:
    assert (percent(None), percent(0.12345)) == ("-", "12.35 %")
    assert [size(n) for n in (0, 999, 1000, 12_345_678, 3_000_000_000)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "12.3 MB",
        "3.00 GB",
    ]
    assert [duration(s) for s in (4.23, 185, 3723)] == ["4.2 s", "3:05", "1:02:03"]
