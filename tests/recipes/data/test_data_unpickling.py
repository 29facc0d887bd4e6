"""Pickles: arrays and plain values are read, everything else is refused unrun."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from setpoint.recipes.data import DataError
from setpoint.recipes.data.unpickling import load_arrays


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pickle-was-run",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_harmful_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="mkdir is not allowed"):
        load_arrays(pickle.dumps({"data": Harmful()}, protocol), "a batch")
    assert not (tmp_path / "pickle-was-run").exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", pickle.dumps([1, 2, 3])[:-3]])
def test_a_damaged_pickle_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="'a batch' could not be unpickled"):
        load_arrays(content, "a batch")


def test_arrays_of_this_numpy_are_unpickled() -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert np.array_equal(load_arrays(pickle.dumps(array, protocol=4), "a batch"), array)
