"""What benchmarks measure: the right works on the right cases, against what they say, with the right fields."""

import json
import math
import sys

import pytest
import torch

from setpoint.bench import Pace, Row, Work, in_turns, page, ratios_tables
from setpoint.bench.envelope import envelope, small_groups
from setpoint.bench.inputs import one_tensor, resnet50, rows
from setpoint.bench.projection import multiplier, projection
from setpoint.bench.references import one_pass
from setpoint.bench.scaling import at_size, fitted_slope, slopes

CPU = torch.device("cpu")
ONCE = Pace(repeats=1, seconds=1e-3, warm_up=0)


def by_work(found):
    return {row.work: row for row in found}


def test_resnet50_has_its_sizes():
    weights = resnet50(CPU, scale=1.0)
    assert (len(weights.tensors), weights.count) == (54, 25_502_912)
    assert weights.name == "ResNet-50, 25.5 M in 54 tensors"
    assert weights.bytes == 4 * weights.count


def test_small_sets():
    before = torch.random.get_rng_state()
    initial = resnet50(CPU, scale=1e-3, initial=True)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(initial.tensors) == 54
    assert min(float(t.std()) for t in initial.tensors) < 0.5
    assert [v.shape for v in rows(CPU, 5, 7).vectors] == [(5, 7)]
    assert [v.shape for v in one_tensor(CPU, 30).vectors] == [(30,)]
    weights = rows(CPU, 5, 7)
    assert float(one_pass(weights.flat)) == pytest.approx(float(weights.tensors[0].square().sum()))


def test_ratios_are_of_times_of_the_same_run():
    works = [Work("slow", lambda: sum(range(200_000))), Work("fast", lambda: None, "slow", lambda _: {"off": 2.0})]
    slow, fast = in_turns("a case", [*works, Work("absent", None, "slow", note="not here")][:2], CPU, ONCE)
    assert (slow.ratio, slow.against) == (1.0, "slow")
    assert fast.ratio == fast.ms / slow.ms
    assert fast.ratio < 1.0
    assert fast.figures == {"off": 2.0}


def test_what_is_missing_is_said():
    found = in_turns("a case", [Work("here", lambda: None), Work("absent", None, "here", note="why")], CPU, ONCE)
    assert found[1] == Row("a case", "absent", None, "here", None, {}, "why")


def test_works_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="is no work of 'a case'"):
        in_turns("a case", [Work("a", lambda: None, "b")], CPU, ONCE)
    with pytest.raises(ValueError, match="have one name"):
        in_turns("a case", [Work("a", lambda: None), Work("a", lambda: None)], CPU, ONCE)
    with pytest.raises(ValueError, match="repeats=0"):
        Pace(repeats=0)


@pytest.mark.parametrize("weights", [resnet50(CPU, scale=1e-3), rows(CPU, 20, 9), one_tensor(CPU, 5_000)])
def test_projections(weights):
    found = by_work(projection(weights, ONCE, plain_gsp=lambda vectors, _: vectors))
    assert all(row.case == weights.name and row.against == "one pass" for row in found.values())
    assert all(math.isfinite(row.ratio) and row.ms >= 0 for row in found.values() if row.ratio is not None)
    assert found["one pass"].ratio == 1.0
    for name in ("project_gsp", "project_gsp at unit length"):
        assert found[name].figures["off"] < 1e-6
    assert found["project_budget"].figures["off"] == 0
    # The other implementation is checked as ours are: it left the vectors as they were.
    assert found["plain project_gsp"].figures["off"] > 0.1
    assert {"torch.sort", "torch.topk", "torch.kthvalue", "magnitudes of every weight"} <= set(found)
    kernels = "magnitudes of every kernel" in found
    assert kernels == (len(weights.tensors) == 54)
    assert abs(found["torch.nn.utils.prune.global_unstructured"].figures["off"]) <= 1
    assert "torch.sort" not in by_work(projection(weights, ONCE, sort=False))


def test_envelopes():
    found = by_work(envelope(300, CPU, ONCE, plain=lambda norms, *_: torch.zeros_like(norms)))
    assert all(row.against == "torch.sort" for row in found.values())
    assert found["prox_group_envelope"].figures["off"] < 1e-5
    assert found["prox_group_envelope, not de-biased"].figures["off"] < 1e-5
    assert found["plain envelope"].figures["off"] == 1.0
    whole = by_work(small_groups(rows(CPU, 30, 9), ONCE))
    assert whole["norms, prox_group_envelope and product"].against == "one pass"


def test_libraries_that_are_not_there(monkeypatch):
    for name in ("torchao", "torchao.prototype.pat.optim", "cooper"):
        monkeypatch.setitem(sys.modules, name, None)
    found = by_work(projection(rows(CPU, 20, 9), ONCE, sort=False))
    for name in ("torchao MinSparsityConstraint", "torchao ProxLasso"):
        assert found[name].ratio is None
        assert "pip install 'setpoint[benchmarks]'" in found[name].note
    ours, theirs = (by_work(multiplier(ONCE))[name] for name in ("multiplier, one step", "cooper, dual step"))
    assert (ours.ratio, theirs.ratio) == (1.0, None)


def test_multipliers():
    pytest.importorskip("cooper")
    assert by_work(multiplier(ONCE))["multiplier, one step"].against == "cooper, dual step"


def test_slopes():
    assert fitted_slope([10, 100, 1000], [3.0, 30.0, 300.0]) == pytest.approx(1.0)
    assert fitted_slope([1, 4, 16], [1.0, 2.0, 4.0]) == pytest.approx(0.5)
    each = [[Row("", "work", 1.0, "", ms)] for ms in (1.0, 10.0, 1000.0)]
    (row,) = slopes([10**4, 10**5, 10**6], each)
    assert row.ratio == pytest.approx(1.5)
    assert row.figures == pytest.approx({"1e4 to 1e5": 1.0, "1e5 to 1e6": 2.0})
    assert {row.work for row in at_size(50, CPU, ONCE)} >= {"one pass", "project_gsp", "torch.sort"}


def test_tables():
    found = [Row("one", "a", 12.34, "b", 0.5, {"off": 1e-9}, "a note"), Row("two", "c", None, "d", note="missing")]
    assert [table.title for table in ratios_tables(found)] == ["one", "two"]
    text = page("Title", "About.", "a machine.", found)
    assert "| a | 12.3 | b | 0.5 | off 1e-09; a note |" in text
    assert "| c | - | d |  | missing |" in text
    assert Row(**json.loads(json.dumps(found[0].to_dict()))) == found[0]
