"""Races on a clock of our own: turns, samples of many short runs, and as many rounds as the time allows."""

from itertools import pairwise

import pytest

from setpoint.deploy.kernels import Race
from setpoint.deploy.kernels import race as module


class Clock:
    """A clock that only runs move on."""

    def __init__(self, costs):
        self.now, self.calls, self.costs = 0.0, [], costs

    def race(self, **options):
        return Race(clock=lambda: self.now, **options)(self.runs())

    def runs(self):
        def run(name):
            self.calls.append(name)
            cost = self.costs[name]
            self.now += cost(len(self.calls)) if callable(cost) else cost

        return {name: lambda name=name: run(name) for name in self.costs}


def test_times_are_those_of_one_run_however_short():
    clock = Clock({"dense": 3e-3, "sparse": 1e-5})
    times = clock.race(seconds=0.1)
    assert {name: len(taken) for name, taken in times.items()} == {"dense": 32, "sparse": 32}
    assert times["dense"] == pytest.approx([3e-3] * 32)
    assert times["sparse"] == pytest.approx([1e-5] * 32)
    assert clock.calls.count("dense") == 2 + 32
    assert clock.calls.count("sparse") >= 2 + 32 * 10, "samples of a tenth of a millisecond at least"


def test_runs_take_turns_in_every_order_and_none_follows_itself():
    clock = Clock({"a": 1.0, "b": 1.0, "c": 1.0})
    clock.race(seconds=1, fewest=40)
    turns = clock.calls[6:]
    rounds = ["".join(turns[i : i + 3]) for i in range(0, 120, 3)]
    assert set(rounds) == {"abc", "acb", "bac", "bca", "cab", "cba"}
    assert all(one != two for one, two in pairwise(turns))
    clock = Clock({"a": 1.0, "b": 1.0})
    clock.race(seconds=1, fewest=5)
    assert "".join(clock.calls[4:]) in ("ab" * 5, "ba" * 5)


def test_rounds_are_bounded():
    slow = Clock({"a": 60.0}).race(seconds=0.1, fewest=5)
    quick = Clock({"a": 1e-3}).race(seconds=1e9, fewest=1, most=7)
    assert (len(slow["a"]), len(quick["a"])) == (5, 7)


def test_a_machine_that_slows_down_does_not_tell_on_the_ratio():
    # From the thirtieth call on all takes ten times as long.
    clock = Clock({n: lambda i, c=c: c * (10 if i > 30 else 1) for n, c in (("a", 0.2), ("b", 0.1))})
    times = clock.race(seconds=1, fewest=25)
    assert max(times["a"]) > 5 * min(times["a"])
    assert module.gain(times["a"], times["b"]) == pytest.approx(2.0)


def test_the_gain_is_the_median_of_paired_ratios():
    assert module.gain([1.0, 10.0, 3.0], [0.5, 5.0, 30.0]) == 2.0


@pytest.mark.parametrize("options", [{"seconds": 0}, {"fewest": 0}, {"fewest": 5, "most": 4}])
def test_races_that_end_before_they_begin_are_refused(options):
    with pytest.raises(ValueError, match="needs seconds > 0"):
        Race(**options)
