import copy
import json
import os
import stat
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from setpoint.deploy import ArchiveError, container, load, packing, read_metadata, save

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.complex128,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
]
SHAPES = [(), (1,), (0,), (3, 0, 2), (257,), (1000, 1), (40, 50), (16, 8, 3, 3), (2, 3, 4, 5, 6)]


def bits(tensor):
    return tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8)


def assert_same(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert torch.equal(bits(found), bits(expected))


def assert_round_trip(tensor, folder):
    path = save({"x": tensor}, folder / "x.safetensors")
    assert_same(load(path)["x"], tensor)
    return path.stat().st_size


def random_bits(shape, dtype, density, generator):
    """Entries of any bits at all, NaN payloads included, of which about 1 - density are zero."""
    kept = torch.rand(shape, generator=generator) < density
    if dtype is torch.bool:
        return kept
    entries = torch.randint(1, 256, (*shape, dtype.itemsize), dtype=torch.uint8, generator=generator)
    return (entries * kept.unsqueeze(-1)).reshape(-1).view(dtype).reshape(shape)


def sparse(shape, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < density, values, 0)


def state_bits(model):
    return {name: bits(tensor).clone() for name, tensor in model.state_dict().items()}


def network(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(64, 40))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
        model[0].weight[::2] = 0
        model[4].weight *= torch.rand_like(model[4].weight) < 0.1
    model(torch.randn(5, 3, 4, 4))
    return model


# Round trips


@pytest.mark.parametrize("density", [0, 0.01, 0.1, 0.4, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_round_trip_is_bit_exact(dtype, density, tmp_path):
    generator = torch.Generator().manual_seed(1)
    state = {f"t{i}": random_bits(shape, dtype, density, generator) for i, shape in enumerate(SHAPES)}
    found = load(save(state, tmp_path / "x.safetensors"))
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert_same(found[name], tensor)


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 40), max_size=3),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**16),
    slices=st.booleans(),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_of_anything(dtype, shape, density, seed, slices, tmp_path):
    tensor = random_bits(tuple(shape), dtype, density, torch.Generator().manual_seed(seed))
    if slices and shape:
        tensor[seed % 2 :: 2] = False if dtype is torch.bool else torch.zeros((), dtype=dtype)
    assert_round_trip(tensor, tmp_path)


@given(
    flat=st.lists(st.sampled_from([0, 0, 0, 1, -7]), max_size=200),
    stretch=st.integers(1, 300),
)
@settings(max_examples=100, deadline=None)
def test_every_encoding_inverts(flat, stretch):
    words = np.zeros((len(flat), stretch), dtype=np.int32)
    words[:, -1] = flat
    words = words.reshape(-1)
    values = words[words != 0]
    gaps = np.diff(np.flatnonzero(words), prepend=-1) - 1
    for width in range(2, 17):
        parts = {"positions": packing._encode_gaps(gaps, width), "values": values}
        found = packing.unpack(packing.Packed("gaps", width, parts), words.shape)
        np.testing.assert_array_equal(found, words)
    mask = packing.Packed("bitmask", parts={"positions": np.packbits(words != 0, bitorder="little"), "values": values})
    np.testing.assert_array_equal(packing.unpack(mask, words.shape), words)


@pytest.mark.parametrize("density", [0.001, 0.02, 0.1, 0.3])
def test_chosen_width_is_the_shortest(density):
    places = np.flatnonzero(np.random.default_rng(0).random(5000) < density)
    gaps = np.diff(places, prepend=-1) - 1
    sizes = {width: packing._encode_gaps(gaps, width).size for width in range(2, 17)}
    assert sizes[packing._cheapest_width(gaps, 5000)] == min(sizes.values())
    assert min(sizes.values()) <= 5000 / 8


@pytest.mark.parametrize("sparsity", [0.0, 0.95])
def test_special_values_keep_their_bits(sparsity, tmp_path):
    values = torch.zeros(5000) if sparsity else torch.ones(64)
    values[::50] = -0.0
    values[1::50] = float("inf")
    values[2::50] = -float("inf")
    values.view(torch.int32)[3::50] = 0x7FC12345
    values.view(torch.int32)[4::50] = -0x3EDCBB  # a negative signalling NaN
    values.view(torch.int32)[5::50] = 1  # the smallest subnormal
    assert_round_trip(values, tmp_path)


def test_non_contiguous_tensors(tmp_path):
    base = sparse((8, 6, 10, 12), 0.3)
    views = {
        "transposed": base.transpose(0, 3),
        "strided": base[::2, :, 1::3],
        "channels_last": base.to(memory_format=torch.channels_last),
        "expanded": torch.arange(5.0).unsqueeze(1).expand(5, 300),
        "conjugate": torch.randn(9, dtype=torch.complex64).conj(),
        "gradient": base.clone().requires_grad_(),
    }
    found = load(save(views, tmp_path / "x.safetensors"))
    for name, tensor in views.items():
        assert_same(found[name], tensor)
        assert not found[name].requires_grad


def test_loaded_tensors_own_their_memory(tmp_path):
    model = network()
    path = save(model, tmp_path / "x.safetensors")
    before = path.read_bytes()
    for tensor in load(path).values():
        tensor.fill_(1)
    assert path.read_bytes() == before


def test_empty_state(tmp_path):
    assert load(save({}, tmp_path / "x.safetensors")) == {}
    assert isinstance(load(save(nn.ReLU(), tmp_path / "x.safetensors"), nn.ReLU()), nn.ReLU)


# Sizes


@pytest.mark.parametrize(
    ("density", "bound"), [(0.5, 0.532), (0.1, 0.117), (0.02, 0.0255), (0.001, 0.0015), (0, 0.001)]
)
def test_size_of_unstructured_sparsity(density, bound, tmp_path):
    assert assert_round_trip(sparse((1000, 1000), density), tmp_path) <= bound * 4_000_000


@pytest.mark.parametrize("kept", [np.s_[::2], np.s_[:, ::2], np.s_[:, :, ::2], np.s_[:500]])
def test_size_of_structured_sparsity(kept, tmp_path):
    dense = torch.randn(1000, 100, 10)
    tensor = torch.zeros_like(dense)
    tensor[kept] = dense[kept]
    assert assert_round_trip(tensor, tmp_path) <= 0.501 * dense.nbytes


@pytest.mark.parametrize(("density", "bound"), [(0.1, 0.145), (0.02, 0.056)])
def test_size_with_negative_zeros(density, bound, tmp_path):
    masked = torch.randn(1000, 1000) * (torch.rand(1000, 1000) < density)
    masked[:5] = -0.0
    masked[5:10] = 0.0
    assert assert_round_trip(masked, tmp_path) <= bound * masked.nbytes


def test_size_of_rows_and_weights_together(tmp_path):
    tensor = sparse((1000, 1000), 0.2)
    tensor[torch.randperm(1000)[:500]] = 0
    assert assert_round_trip(tensor, tmp_path) <= 0.5 * (0.2 + 0.77 / 32) * tensor.nbytes


def test_size_of_masks_and_constants(tmp_path):
    assert assert_round_trip(torch.rand(100_000) < 0.5, tmp_path) <= 100_000 / 8 + 1000
    assert assert_round_trip(torch.full((100_000,), 3.5), tmp_path) <= 1000


def test_dense_costs_only_a_header(tmp_path):
    assert assert_round_trip(torch.randn(1000), tmp_path) <= 4000 + 500


# The file


def content(path):
    """The header, whose order safetensors leaves open, and the bytes of the tensors, whose order it does not."""
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:end]), data[end:]


def test_same_state_gives_same_content(tmp_path):
    notes = {"b": "1", "a": "2"}
    first = save(network(), tmp_path / "a.safetensors", metadata=notes)
    second = save(network(), tmp_path / "b.safetensors", metadata=notes)
    assert content(second) == content(first)
    assert second.stat().st_size == first.stat().st_size


def test_checksum_is_of_the_content_only(tmp_path):
    path = tmp_path / "x.safetensors"
    first = {"a": torch.ones(3), "b": torch.zeros(2, 3)}

    def checksum(tensors, metadata):
        container.write_container(path, tensors, metadata)
        return container.read_container(path).metadata["checksum"]

    expected = checksum(first, {"k": "1", "l": "2"})
    assert checksum(dict(reversed(first.items())), {"l": "2", "k": "1"}) == expected
    for tensors, metadata in [
        ({**first, "a": torch.ones(3, dtype=torch.float64)}, {"k": "1", "l": "2"}),
        ({**first, "b": torch.zeros(3, 2)}, {"k": "1", "l": "2"}),
        ({**first, "b": torch.full((2, 3), -0.0)}, {"k": "1", "l": "2"}),
        ({"a": first["a"], "c": first["b"]}, {"k": "1", "l": "2"}),
        (first, {"k": "2", "l": "1"}),
        (first, {"k": "1"}),
    ]:
        assert checksum(tensors, metadata) != expected


def test_safetensors_reads_the_file(tmp_path):
    state = {"dense": torch.randn(7, 5), "half": torch.randn(3).bfloat16(), "sparse": sparse((100, 100), 0.05)}
    path = save(state, tmp_path / "x.safetensors", metadata={"run": "7"})
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {"dense", "half", "sparse#positions", "sparse#values"}
        assert torch.equal(file.get_tensor("dense"), state["dense"])
        assert torch.equal(file.get_tensor("half"), state["half"])
        assert torch.equal(file.get_tensor("sparse#values"), state["sparse"][state["sparse"] != 0])
        assert file.metadata()["setpoint"] == "1"
        assert set(file.metadata()) == {"setpoint", "checksum", "index", "metadata"}


def test_metadata(tmp_path):
    notes = {"checksum": '"checksum":"' + "0" * 64, "setpoint": "99", "größe": '日本 "{}" \\ \n', "": ""}
    path = save(network(), tmp_path / "x.safetensors", metadata=notes)
    assert read_metadata(path) == notes
    assert read_metadata(save(network(), path)) == {}
    with pytest.raises(TypeError, match="'epochs': 3"):
        save(network(), path, metadata={"epochs": 3})


@pytest.mark.parametrize("name", ["checksum", "index", 'a"b\\', "größe", "a#values", "", " "])
def test_strange_names(name, tmp_path):
    state = {name: sparse((50, 50), 0.1), "other": torch.ones(2)}
    found = load(save(state, tmp_path / "x.safetensors"))
    assert_same(found[name], state[name])


def test_names_that_collide_are_refused(tmp_path):
    state = {"a": sparse((50, 50), 0.1), "a#values": torch.randn(3)}
    with pytest.raises(ArchiveError, match="'a#values'"):
        save(state, tmp_path / "x.safetensors")
    with pytest.raises(ArchiveError, match="__metadata__"):
        save({"__metadata__": torch.randn(3)}, tmp_path / "x.safetensors")


def test_truncated_file_is_refused(tmp_path):
    model = network()
    path = save(model, tmp_path / "x.safetensors")
    whole, before = path.read_bytes(), state_bits(model)
    for length in [0, 1, 7, 8, 9, 60, 120, 500, len(whole) // 2, len(whole) - 100, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ArchiveError, match=r"x\.safetensors"):
            load(path, model)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ArchiveError, match="truncated or altered"):
        load(path, model)
    assert_unchanged(model, before)


def is_refused(path, model, notes):
    """Whether a damaged file is refused, with nothing loaded. If not, everything loaded must be what was saved."""
    target = network(1)
    before = state_bits(target)
    try:
        load(path, target)
    except ArchiveError:
        assert_unchanged(target, before)
        for read in (load, read_metadata):
            with pytest.raises(ArchiveError):
                read(path)
        return True
    assert_unchanged(target, state_bits(model))
    found, expected = load(path), model.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert_same(found[name], tensor)
    assert read_metadata(path) == notes
    return False


def padding(whole):
    """Where the spaces are that fill up the header."""
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    return range(len(whole[:end].rstrip(b" ")), end)


def test_any_flipped_byte_is_refused_or_means_nothing(tmp_path):
    model, notes = network(0), {"a": "b"}
    path = save(model, tmp_path / "x.safetensors", metadata=notes)
    whole = path.read_bytes()
    head = 8 + struct.unpack("<Q", whole[:8])[0]
    generator = np.random.default_rng(0)
    places = [*range(150), *range(head - 8, head + 8), len(whole) - 1]
    places += [*generator.integers(0, head, 200), *generator.integers(head, len(whole), 200)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        assert is_refused(path, model, notes) or place in padding(whole)


def test_changed_padding_is_refused_or_means_nothing(tmp_path):
    model = network(0)
    path = tmp_path / "x.safetensors"
    for length in range(8):
        notes = {"a": "b" * length}
        whole = save(model, path, metadata=notes).read_bytes()
        for place in padding(whole):
            for blank in b"\t\n\r\0x":
                damaged = bytearray(whole)
                damaged[place] = blank
                path.write_bytes(damaged)
                assert is_refused(path, model, notes) or blank in b"\t\n\r"


def test_altered_content_is_refused_by_its_checksum(tmp_path):
    path = save({"weight": torch.randn(2, 3), "bias": torch.randn(3)}, tmp_path / "x.safetensors", metadata={"a": "b"})
    whole = path.read_bytes()
    for altered in (
        whole[:-1] + bytes([whole[-1] ^ 1]),
        whole.replace(b'"weight":{', b'"height":{'),
        whole.replace(b'"F32"', b'"I32"', 1),
        whole.replace(b'"shape":[2,3]', b'"shape":[3,2]'),
        whole.replace(b'"checksum"', b'"checksun"'),
        whole.replace(b'\\"b\\"', b'\\"c\\"'),
    ):
        assert altered != whole
        path.write_bytes(altered)
        with pytest.raises(ArchiveError, match="truncated or altered: expected checksum"):
            load(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3)}, path)
    with pytest.raises(ArchiveError, match=r"safetensors\.torch\.load_file"):
        load(path)
    torch.save({"a": torch.ones(3)}, path)
    with pytest.raises(ArchiveError, match="no safetensors file"):
        load(path)
    for header in (b"[1]     ", b'{"a": {}', b'{"__metadata__":1}', b'{"__metadata__":{"setpoint":"1","a":2}}'):
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(ArchiveError):
            load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError):
        read_metadata(tmp_path / "none.safetensors")


def test_other_version_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(container, "VERSION", "2")
        path = save(network(), tmp_path / "x.safetensors")
    with pytest.raises(ArchiveError, match=r"expected format version '1'.*'2'"):
        load(path)


def test_parts_that_disagree_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    parts = {"a#positions": torch.tensor([255], dtype=torch.uint8), "a#values": torch.ones(3)}
    fields = {"dtype": "float32", "shape": [8], "parts": ["positions", "values"]}
    for change in [
        {"encoding": "bitmask"},
        {"encoding": "gaps", "width": 4},
        {"encoding": "x"},
        {"dtype": "y"},
        {"parts": ["values", "axes"]},
    ]:
        index = json.dumps({"a": {**fields, **change}})
        container.write_container(path, parts, {"index": index, "metadata": "{}"})
        with pytest.raises(ArchiveError, match=r"x\.safetensors: cannot decode 'a'"):
            load(path)


# Writing


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("step", ["replace", "fsync", "write"])
def test_failed_save_leaves_everything_as_it_was(step, existing, tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    if existing:
        save(network(0), path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(*args):
        if step == "write":
            args[0].write(b"half")
        raise KeyboardInterrupt

    if step == "write":
        monkeypatch.setattr(container, "_write", fail)
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(KeyboardInterrupt):
        save(network(1), path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_save_replaces_and_returns_the_path(tmp_path):
    path = tmp_path / "x.safetensors"
    save(network(0), path)
    assert save(network(1), str(path)) == path
    assert_same(load(path)["0.weight"], network(1)[0].weight)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions and links")
def test_permissions_and_links_are_the_usual_ones(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    path = save(network(), tmp_path / "x.safetensors")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    link = tmp_path / "link.safetensors"
    link.symlink_to(plain)
    save(network(), link)
    assert link.is_symlink()
    assert content(plain) == content(path)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .*none does not exist"):
        save(network(), tmp_path / "none" / "x.safetensors")
    assert not (tmp_path / "none").exists()


class Sharded(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError


@pytest.mark.filterwarnings("ignore:.*Sparse")
def test_what_is_no_plain_tensor_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    cases = {
        "type dict": {},
        "without data": torch.ones(3, device="meta"),
        "sparse_coo": torch.eye(3).to_sparse(),
        "type float": 1.0,
        "Sharded: gather": torch.Tensor._make_subclass(Sharded, torch.ones(3)),
    }
    for match, value in cases.items():
        with pytest.raises(ArchiveError, match=f"'layer.w'.*{match}"):
            save({"layer.w": value}, path)
    with pytest.raises(ArchiveError, match="'weight'"):
        save(nn.LazyLinear(3), path)
    assert list(tmp_path.iterdir()) == []


# Models


def assert_unchanged(model, before):
    after = state_bits(model)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_load_into_a_model_in_place(tmp_path):
    model, target = network(0), network(1)
    path = save(model, tmp_path / "x.safetensors")
    objects = {name: (id(p), p.data_ptr()) for name, p in target.named_parameters()}
    assert load(path, target) is target
    assert {name: (id(p), p.data_ptr()) for name, p in target.named_parameters()} == objects
    assert all(p.requires_grad for p in target.parameters())
    assert_unchanged(target, state_bits(model))
    assert target[1].num_batches_tracked.item() == 1
    assert target[1].num_batches_tracked.shape == ()


def test_channels_last_model(tmp_path):
    model, target = network(0), network(1).to(memory_format=torch.channels_last)
    load(save(model.to(memory_format=torch.channels_last), tmp_path / "x.safetensors"), target)
    assert_unchanged(target, state_bits(model))
    assert target[0].weight.is_contiguous(memory_format=torch.channels_last)


class Tied(nn.Module):
    def __init__(self, tie=True):
        super().__init__()
        self.embedding = nn.Embedding(50, 20)
        self.head = nn.Linear(20, 50, bias=False)
        if tie:
            self.head.weight = self.embedding.weight


@pytest.mark.parametrize("density", [0.1, 1])
def test_tied_weights_are_stored_once(density, tmp_path):
    model, target = Tied(), Tied()
    with torch.no_grad():
        model.head.weight[torch.rand(50, 20) >= density] = 0
    path = save(model, tmp_path / "x.safetensors")
    assert path.stat().st_size < 4000 * density + 1200
    found = load(path)
    assert found["head.weight"] is found["embedding.weight"]
    load(path, target)
    assert target.head.weight is target.embedding.weight
    assert_unchanged(target, state_bits(model))
    assert_unchanged(load(path, Tied(tie=False)), state_bits(model))


def test_untied_weights_do_not_load_into_tied_ones(tmp_path):
    model, target = Tied(tie=False), Tied()
    path, before = save(model, tmp_path / "x.safetensors"), state_bits(target)
    with pytest.raises(ArchiveError, match=r"'embedding.weight' and 'head.weight' share one tensor"):
        load(path, target)
    assert_unchanged(target, before)
    with torch.no_grad():
        model.head.weight.copy_(model.embedding.weight)
    assert_unchanged(load(save(model, path), target), state_bits(model))


def test_overlapping_views_are_no_aliases(tmp_path):
    base = torch.randn(4, 4)
    state = {"base": base, "flat": base.view(-1), "row": base[0], "transposed": base.T, "same": base[:]}
    found = load(save(state, tmp_path / "x.safetensors"))
    for name, tensor in state.items():
        assert_same(found[name], tensor)
    assert found["same"] is found["base"]
    assert found["row"].data_ptr() != found["base"].data_ptr()


def test_mismatched_model_lists_every_difference(tmp_path):
    path = save(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)), tmp_path / "x.safetensors")
    target = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 6), nn.Linear(6, 2)).double()
    before = state_bits(target)
    with pytest.raises(ArchiveError) as caught:
        load(path, target)
    text = str(caught.value)
    assert "x.safetensors does not fit Sequential" in text
    assert "not in the file: '2.weight', '2.bias'" in text
    assert "not in the model: '0.bias'" in text
    assert "'1.weight' (float64[6, 4] in the model, float32[5, 4] in the file)" in text
    assert "'0.weight' (float64[4, 3] in the model, float32[4, 3] in the file)" in text
    assert_unchanged(target, before)


def test_long_lists_are_cut(tmp_path):
    path = save(nn.ReLU(), tmp_path / "x.safetensors")
    with pytest.raises(ArchiveError, match=r"'3\.bias' and 12 more$"):
        load(path, nn.Sequential(*[nn.Linear(1, 1) for _ in range(10)]))


def test_meta_model_is_refused(tmp_path):
    path = save(nn.Linear(3, 4), tmp_path / "x.safetensors")
    with pytest.raises(ArchiveError, match="to_empty"):
        load(path, nn.Linear(3, 4, device="meta"))


def wrap_parallel(model):
    return nn.DataParallel(model)


def wrap_part(model):
    model[4] = torch.compile(model[4])
    return model


@pytest.mark.parametrize("wrap", [torch.compile, wrap_parallel, wrap_part, lambda m: wrap_parallel(torch.compile(m))])
def test_wrapped_models_have_the_names_of_the_inner_one(wrap, tmp_path):
    model = network(0)
    plain = save(model, tmp_path / "plain.safetensors")
    wrapped = save(wrap(copy.deepcopy(model)), tmp_path / "wrapped.safetensors")
    assert content(wrapped) == content(plain)
    target = wrap(network(1))
    assert load(plain, target) is target
    assert_unchanged(load(save(target, wrapped), network(2)), state_bits(model))


def test_own_submodule_called_module_keeps_its_name(tmp_path):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    path = save(Holder(), tmp_path / "x.safetensors")
    assert list(load(path)) == ["module.weight", "module.bias"]
    load(path, Holder())


def test_device(tmp_path):
    path = save(Tied(), tmp_path / "x.safetensors")
    found = load(path, device="meta")
    assert all(tensor.is_meta for tensor in found.values())
    assert found["head.weight"] is found["embedding.weight"]
