"""Texts: their parts, their windows, and where they come from."""

import hashlib
import io
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from setpoint.recipes.data import Batches, DataError, Dataset, Split, download, load_dataset
from setpoint.recipes.data.text import TINYSHAKESPEARE, TextSet, divide, load_text_set


def make_text(count: int, seed: int = 0) -> bytes:
    return bytes(torch.randint(256, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def training(dataset: Dataset, seed: int = 0, *, augment: bool = True) -> Batches:
    return Batches(dataset.train, dataset, 4, seed=seed, shuffle=True, augment=augment)


def join(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*batches)
    return torch.cat(inputs), torch.cat(targets)


def places(text: bytes, inputs: Tensor) -> list[int]:
    """Where in a text, whose windows are all different, windows begin."""
    found = [text.find(bytes(window.tolist())) for window in inputs]
    assert min(found) >= 0
    return found


def test_no_byte_is_in_two_parts() -> None:
    # 810 bytes to train on, 90 for validation, 100 for testing: each part has a byte of its own.
    dataset = divide("toy", bytes([1] * 810 + [2] * 90 + [3] * 100), 8)
    for value, split in enumerate((dataset.train, dataset.validation, dataset.test), 1):
        assert {*split.inputs.unique().tolist(), *split.targets.unique().tolist()} == {value}
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [100, 11, 12]
    assert (dataset.shape, len(dataset.classes), dataset.task) == ((8,), 256, "language modelling")


@pytest.mark.parametrize("count", [1000, 1005, 1007])
def test_evaluation_predicts_each_byte_once(count: int) -> None:
    text = make_text(count)
    dataset = divide("toy", text, 8)
    test = text[-(count // 10) :]
    inputs, targets = join(Batches(dataset.test, dataset, 5))
    assert (inputs.dtype, targets.dtype) == (torch.int64, torch.int64)
    windows = (len(test) - 1) // 8
    assert inputs.shape == targets.shape == (windows, 8)
    assert bytes(inputs.flatten().tolist()) == test[: 8 * windows]
    assert bytes(targets.flatten().tolist()) == test[1 : 8 * windows + 1]


def test_an_epoch_is_a_pass_over_the_text_in_its_own_order_and_from_its_own_offset() -> None:
    text = make_text(1000)
    dataset = divide("toy", text, 8)
    seen = []
    for seed in (0, 1):
        for epoch in range(6):
            inputs, targets = join(training(dataset, seed).epoch(epoch))
            begins = places(text[:810], inputs)
            assert [bytes(window.tolist()) for window in targets] == [text[b + 1 : b + 9] for b in begins]
            assert max(begins) + 9 <= 810
            offset = min(begins)
            assert sorted(begins) == list(range(offset, offset + 8 * len(begins), 8))
            assert begins != sorted(begins)
            seen.append((offset, tuple(begins)))
    assert len({begins for _, begins in seen}) == 12
    offsets = {offset for offset, _ in seen}
    assert len(offsets) > 3
    assert offsets <= set(range(8))


def test_all_offsets_occur() -> None:
    text = make_text(1000)
    dataset = divide("toy", text, 4)
    begins = [places(text, next(training(dataset).epoch(epoch))[0][:1])[0] for epoch in range(60)]
    assert {begin % 4 for begin in begins} == {0, 1, 2, 3}


def test_an_epoch_is_the_same_whenever_it_is_asked_for() -> None:
    dataset = divide("toy", make_text(1000), 8)
    whole = list(training(dataset).epoch(3))
    torch.manual_seed(99)
    again = list(training(dataset).epoch(3, start=10))
    assert len(again) == len(whole) - 10
    for (inputs, targets), (others, following) in zip(whole[10:], again):
        assert torch.equal(inputs, others)
        assert torch.equal(targets, following)


def test_without_augmentation_windows_begin_at_the_beginning() -> None:
    text = make_text(1000)
    dataset = divide("toy", text, 8)
    for epoch in range(3):
        inputs, _ = join(training(dataset, augment=False).epoch(epoch))
        assert {place % 8 for place in places(text, inputs)} == {0}


@pytest.mark.parametrize("context", [1, 2, 7, 128])
def test_a_text_that_is_too_short_is_refused_with_the_least_length(context: int) -> None:
    with pytest.raises(DataError, match=rf"toy: 9 bytes are too few for context={context}: at least (\d+), or") as told:
        divide("toy", bytes(9), context)
    least = int(str(told.value).partition("at least ")[2].partition(",")[0])
    dataset = divide("toy", bytes(least), context)
    assert min(len(split) for split in (dataset.train, dataset.validation, dataset.test)) >= 1
    with pytest.raises(DataError, match=f"{least - 1} bytes are too few"):
        divide("toy", bytes(least - 1), context)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(DataError, match="context=0 was asked for"):
        divide("toy", bytes(1000), 0)
    with pytest.raises(DataError, match="0 bytes are too few"):
        divide("toy", b"", 4)
    windows = torch.zeros(3, 4, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"targets of a text must be uint8 of shape \(3, 4\), not .*int64"):
        Split(windows, windows.long())
    with pytest.raises(DataError, match=r"of shape \(3, 4\), not torch.uint8 of shape \(2, 4\)"):
        Split(windows, windows[:2])
    with pytest.raises(DataError, match="inputs of a text must be uint8"):
        Split(windows.float(), windows)


def test_a_users_own_text(tmp_path: Path) -> None:
    text = "Über den Wölken. ".encode() * 100
    (tmp_path / "own.txt").write_bytes(text)
    first, second = (load_dataset(tmp_path / "own.txt", context=16, seed=seed) for seed in (0, 1))
    assert (first.name, first.shape) == ("own.txt", (16,))
    assert bytes(first.train.inputs[0, :16].tolist()) == text[:16]
    assert torch.equal(first.validation.inputs, second.validation.inputs)
    with pytest.raises(DataError, match=r"own.txt: 1900 bytes are too few for context=1000"):
        load_dataset(tmp_path / "own.txt", context=1000)


CONTENT = make_text(3000)
TOY = TextSet("toy", "text/toy.txt", "https://example.org/toy.txt", hashlib.md5(CONTENT).hexdigest())


def test_a_published_text_is_fetched_once_and_checked_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def serve(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(CONTENT)

    monkeypatch.setattr(download, "urlopen", serve)
    with pytest.raises(DataError, match=r"toy: looked in .* did not find text/toy.txt; allow the download"):
        load_text_set(TOY, tmp_path, context=16, download=False)
    for _ in range(2):
        assert load_text_set(TOY, tmp_path, context=16, download=True).name == "toy"
    assert asked == [TOY.url]
    (tmp_path / "text/toy.txt").write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    with pytest.raises(DataError, match=rf"text/toy.txt' is damaged or another file: MD5 {TOY.md5} was expected"):
        load_text_set(TOY, tmp_path, context=16, download=True)


@pytest.mark.skipif(
    not (Path(os.environ.get("SETPOINT_DATA", "/nowhere")) / TINYSHAKESPEARE.path).is_file(),
    reason="SETPOINT_DATA names no folder with tinyshakespeare",
)
def test_real_tinyshakespeare() -> None:
    dataset = load_dataset("tinyshakespeare", download=False)
    assert bytes(dataset.train.inputs[0, :13].tolist()) == b"First Citizen"
    # 1,115,394 bytes: 903,470 to train on, 100,385 for validation, 111,539 for testing.
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [7057, 784, 871]
