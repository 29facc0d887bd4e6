"""Files whose checksums are right and that lie: refused as archives are, in memory and time that follow their size."""

import json
import random
import resource
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from forging import Net, deadline, forge, mutate, readers, seal
from torch import nn

import setpoint
from setpoint.deploy import ArchiveError, container, index, read_metadata, skeleton

CASES = 150
# Seconds and bytes that no small file may take: far more than it needs, far less than a bomb.
PATIENCE, ROOM = 20.0, 1 << 30
TERABYTE = 1 << 40


@contextmanager
def bounded():
    """Little memory beyond what is in use, and little time."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    try:
        with deadline(PATIENCE):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    path = setpoint.save(Net(), tmp_path_factory.mktemp("valid") / "x.safetensors", metadata={"a": "b"})
    for read in readers(path).values():
        read()
    return path.read_bytes()


def refusals(path, content):
    """What each way to read a file says of it; None where it reads it."""
    path.write_bytes(content)
    said = {}
    for name, read in readers(path).items():
        said[name] = None
        with bounded():
            try:
                read()
            except ArchiveError as error:
                said[name] = str(error)
    return said


def test_no_change_of_structure_leads_to_another_error(valid, tmp_path):
    said = []
    for case in range(CASES):
        said += refusals(tmp_path / "forged.safetensors", mutate(valid, random.Random(case))).values()
    refused = [text for text in said if text is not None]
    assert CASES < len(refused) < 4 * CASES
    assert all("forged.safetensors" in text for text in refused)


def test_unchanged_files_are_forged_whole(valid, tmp_path):
    assert set(refusals(tmp_path / "x.safetensors", forge(valid, lambda whole: None)).values()) == {None}


# Tensors


def made_of(path, entries, tensors, **texts):
    about = {"index": json.dumps(entries), "metadata": "{}", **texts}
    container.write_container(path, tensors, about)
    return path


FOUR_BYTES = {"a#values": torch.ones(1)}
NOTHING = {"a#values": torch.ones(0), "a#positions": torch.ones(0, dtype=torch.uint8)}
BOMBS = [
    ({"shape": [1 << 30], "parts": ["values"]}, FOUR_BYTES),
    ({"shape": [TERABYTE // 4], "parts": ["values"]}, FOUR_BYTES),
    ({"shape": [1 << 20, 1 << 20], "parts": ["values"]}, FOUR_BYTES),
    ({"shape": [1 << 62, 1 << 62], "parts": ["values"]}, FOUR_BYTES),
    ({"shape": [(1 << 63) - 1] * 64, "parts": ["values"]}, FOUR_BYTES),
    ({"shape": [TERABYTE], "encoding": "gaps", "width": 4, "parts": ["positions", "values"]}, NOTHING),
    ({"shape": [TERABYTE, 0, TERABYTE], "parts": ["values"]}, NOTHING),
]


@pytest.mark.parametrize(("fields", "tensors"), BOMBS, ids=range(len(BOMBS)))
def test_a_few_bytes_do_not_become_gigabytes(fields, tensors, tmp_path):
    path = made_of(tmp_path / "x.safetensors", {"a": {"dtype": "float32", **fields}}, tensors)
    empty = 0 in fields["shape"]
    for read in (setpoint.load, lambda p: setpoint.load(p, nn.Linear(2, 2))):
        with bounded(), pytest.raises(ArchiveError, match=r"x\.safetensors"):
            read(path)
    if not empty:
        with pytest.raises(ArchiveError, match=r"would take more than \d+ bytes.*setpoint\.load\(path, model\)"):
            setpoint.load(path)


def test_many_tensors_do_not_become_what_one_may_not(tmp_path):
    entries = {f"t{i}": {"dtype": "float32", "shape": [1 << 22], "parts": ["values"]} for i in range(100)}
    path = made_of(tmp_path / "x.safetensors", entries, {f"t{i}#values": torch.ones(1) for i in range(100)})
    with bounded(), pytest.raises(ArchiveError, match="'t16' and what comes before it"):
        setpoint.load(path)


def test_codes_take_little_more_than_their_positions(tmp_path):
    fields = {"dtype": "int8", "shape": [1 << 24], "encoding": "gaps", "width": 2, "parts": ["positions", "values"]}
    escapes = torch.full((1 << 20,), 255, dtype=torch.uint8)
    tensors = {"a#values": torch.ones(0, dtype=torch.int8), "a#positions": escapes}
    path = made_of(tmp_path / "x.safetensors", {"a": fields}, tensors)
    assert not setpoint.load(path)["a"].any()


WRONG = [
    {"shape": [True]},
    {"shape": [-1]},
    {"shape": [2.0]},
    {"shape": [1] * 65},
    {"shape": "12"},
    {"shape": 1},
    {"shape": [1 << 63]},
    {"dtype": "load"},
    {"dtype": "int32"},
    {"dtype": "float64"},
    {"dtype": 3},
    {"dtype": None},
    {"encoding": None},
    {"width": "2"},
    {"width": True},
    {"parts": [[]]},
    {"parts": "values"},
    {"parts": ["values", "values", "signs"]},
    {"parts": ["positions"]},
    {"alias": "a"},
    {"alias": "none"},
    {"alias": 0},
    {"colour": "red"},
]


@pytest.mark.parametrize("fields", WRONG, ids=str)
def test_entries_that_no_writer_wrote_are_refused(fields, tmp_path):
    entry = {"dtype": "float32", "shape": [3], "parts": ["values"], **fields}
    path = made_of(tmp_path / "x.safetensors", {"a": entry}, {"a#values": torch.ones(3)})
    with pytest.raises(ArchiveError, match=r"x\.safetensors"):
        setpoint.load(path)


def test_a_dense_tensor_is_what_the_index_says(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3)}
    path = made_of(tmp_path / "x.safetensors", {"a": {"dtype": "float32", "shape": [2, 3]}}, tensors)
    assert torch.equal(setpoint.load(path)["a"], tensors["a"])
    for other in ({"dtype": "int32", "shape": [2, 3]}, {"dtype": "float32", "shape": [3, 2]}):
        path = made_of(tmp_path / "x.safetensors", {"a": other}, tensors)
        with pytest.raises(ArchiveError, match=r"cannot decode 'a'.*stored as float32\[2, 3\]"):
            setpoint.load(path)


def test_an_alias_is_an_earlier_tensor_of_its_kind(tmp_path):
    entry = {"dtype": "float32", "shape": [3]}
    for first, second in (({**entry, "alias": "b"}, entry), (entry, {"dtype": "float32", "shape": [4], "alias": "a"})):
        path = made_of(tmp_path / "x.safetensors", {"a": first, "b": second}, {"a": torch.ones(3), "b": torch.ones(3)})
        with pytest.raises(ArchiveError, match="which is no earlier"):
            setpoint.load(path)


@pytest.mark.parametrize(
    "texts", [{"metadata": "[]"}, {"metadata": '{"a": 1}'}, {"metadata": "[" * 9999}, {"index": "[]"}]
)
def test_texts_that_no_writer_wrote_are_refused(texts, tmp_path):
    path = made_of(tmp_path / "x.safetensors", {}, {}, **texts)
    with pytest.raises(ArchiveError, match=r"x\.safetensors cannot be read"):
        (setpoint.load if "index" in texts else read_metadata)(path)


@pytest.mark.parametrize("missing", ["index", "metadata", "checksum"])
def test_what_is_missing_is_refused(missing, tmp_path):
    texts = {key: "{}" for key in ("index", "metadata") if key != missing}
    path = tmp_path / "x.safetensors"
    container.write_container(path, {}, texts)
    if missing == "checksum":
        path.write_bytes(path.read_bytes().replace(b"checksum", b"checksun"))
    with pytest.raises(ArchiveError, match=r"x\.safetensors"):
        (read_metadata if missing == "metadata" else setpoint.load)(path)


@pytest.mark.parametrize("header", ["", "[]", "{", "[" * 100_000, "1" * 5000, '{"a": {"dtype": "U8", "shape": [0]}}'])
def test_headers_that_are_none_are_refused(header, tmp_path):
    said = refusals(tmp_path / "x.safetensors", seal(header, b""))
    assert all(text is not None for text in said.values())


# What `save` writes keeps within the bounds


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(index, "FREE_BYTES", 1000)
    monkeypatch.setattr(index, "BYTES_PER_BYTE", 4)


@pytest.mark.parametrize("size", [1, 250, 251, 100_000, 1_000_000])
def test_zeros_of_any_number_are_saved_so_that_they_load(size, narrow, tmp_path):
    state = {"zeros": torch.zeros(size), "ones": torch.ones(size, dtype=torch.int8), "tied": torch.rand(3)}
    state["other"] = state["tied"]
    found = setpoint.load(setpoint.save(state, tmp_path / "x.safetensors"))
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert (tmp_path / "x.safetensors").stat().st_size >= (5 * size - 1000) / 4


def test_a_name_that_is_needed_to_fill_up_is_refused(narrow, tmp_path):
    with pytest.raises(ArchiveError, match="'#padding'"):
        setpoint.save({"zeros": torch.zeros(10_000), "#padding": torch.rand(3)}, tmp_path / "x.safetensors")


def test_a_model_of_many_like_modules_is_saved_so_that_it_loads(monkeypatch, tmp_path):
    monkeypatch.setattr(skeleton, "_FREE_BYTES", 1000)
    model = nn.Sequential(*[nn.Identity() for _ in range(300)])
    found = setpoint.load_model(setpoint.save(model, tmp_path / "x.safetensors"))
    assert len(found) == 300
    text = skeleton.dump_skeleton(json.loads("[" + "0," * 10_000 + "0]"))
    assert skeleton.parse_skeleton(text) == [0] * 10_001
    with pytest.raises(ValueError, match="larger than"):
        skeleton.parse_skeleton(text.strip())


# Descriptions


def modules(about):
    about["modules"] += [{"class": 0, "training": True}] * 100_000


def short_modules(about):
    about["modules"] += [{"class": 0}] * 1000


def zeros(about):
    about["modules"][0]["attributes"]["many"] = [0] * 1_000_000


def like_hashes(about):
    prime = (1 << 61) - 1
    about["modules"][0]["attributes"]["many"] = {"dict": [[prime * i, 0] for i in range(3000)]}


def like_hashes_of_complex_numbers(about):
    about["modules"][0]["attributes"]["many"] = {"set": [{"complex": [1000003 * i, -i]} for i in range(3000)]}


def deep(about):
    return '{"names": [], "modules": ' + "[" * 50_000 + "]" * 50_000 + "}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (modules, "larger than"),
        (short_modules, "no class and training"),
        (zeros, "larger than"),
        (like_hashes, "more than 100 keys of one hash"),
        (like_hashes_of_complex_numbers, "more than 100 keys of one hash"),
        (deep, "RecursionError"),
    ],
)
def test_a_description_takes_memory_and_time_by_its_size(change, message, valid, tmp_path, monkeypatch):
    def forged(whole):
        text = change(whole["skeleton"]) or json.dumps(whole["skeleton"], separators=(",", ":"))
        with monkeypatch.context() as patch:
            patch.setattr(skeleton, "_BYTES_PER_BYTE", 1 << 40)  # a forger fills nothing up
            whole["skeleton"] = skeleton.dump_skeleton(json.loads(text)) if change is not deep else packed(text)

    path = tmp_path / "x.safetensors"
    path.write_bytes(forge(valid, forged))
    with bounded(), pytest.raises(ArchiveError, match=message):
        setpoint.load_model(path)


def packed(text):
    import base64
    import zlib

    return base64.b85encode(zlib.compress(text.encode())).decode()


def test_keys_of_one_hash_are_no_attribute_to_describe(tmp_path):
    model = nn.Linear(2, 2)
    model.table = {((1 << 61) - 1) * i: 0 for i in range(200)}
    with pytest.raises(ArchiveError, match="more than 100 keys of one hash"):
        setpoint.load_model(setpoint.save(model, tmp_path / "x.safetensors"))
    model.table = dict.fromkeys(range(5000), 0)
    assert setpoint.load_model(setpoint.save(model, tmp_path / "x.safetensors")).table == model.table


def test_strides_that_are_none_are_refused(valid, tmp_path):
    for strides in ([1], [-1, 1, 1, 1], [9, 9, 3, 2], [0, 0, 0, 0], [1 << 70, 1, 3, 1], ["x"], {}, 3, [9, True, 3, 1]):

        def change(whole, strides=strides):
            about = next(t for t in whole["skeleton"]["tensors"] if t["data"] == "conv.weight")
            about["strides"] = strides

        path = tmp_path / "x.safetensors"
        path.write_bytes(forge(valid, change))
        with pytest.raises(ArchiveError, match=r"x\.safetensors cannot be made into a model"):
            setpoint.load_model(path)


def test_a_tensor_has_one_layout(valid, tmp_path):
    def change(whole):
        tensors = whole["skeleton"]["tensors"]
        first = next(t for t in tensors if t["data"] == "fc.weight")
        tensors.append({**first, "strides": [1, 30]})

    path = tmp_path / "x.safetensors"
    path.write_bytes(forge(valid, change))
    with suppress(KeyError), pytest.raises(ArchiveError, match="asked for in two layouts"):
        setpoint.load_model(path)
