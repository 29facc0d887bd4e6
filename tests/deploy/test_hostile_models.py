"""Files that ask for more than a model: none makes loading run what it names."""

import base64
import os
import random
import sys
import zlib
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import setpoint
import setpoint.cli
from setpoint.deploy import ArchiveError, skeleton
from setpoint.deploy.container import read_container, write_container

RAN = []
EVENTS = []
WATCHING = []


def watch(event, arguments):
    if WATCHING and event in ("import", "exec", "compile", "os.system", "subprocess.Popen", "socket.connect"):
        EVENTS.append((event, arguments[:1]))


sys.addaudithook(watch)


@pytest.fixture(autouse=True)
def _nothing_runs(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of small files
    RAN.clear()
    EVENTS.clear()
    yield
    assert not RAN


@dataclass
class Config:
    width: int = 4


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.config = Config()
        self.act = torch.tanh
        self.sizes = {"a": (1, 2), 3: {4}}

    def forward(self, x):
        return self.act(self.fc(x))


def run(*args, **kwargs):
    RAN.append(args)


class WithDel(nn.Module):
    def __del__(self):
        run("__del__")


class WithNew(nn.Module):
    def __new__(cls):
        run("__new__")
        return super().__new__(cls)


class WithSetState(nn.Module):
    def __setstate__(self, state):
        run("__setstate__")


class ValueWithDel:
    def __del__(self):
        run("__del__")


@dataclass
class ValueWithReduce:
    def __reduce__(self):
        run("__reduce__")


class ValueWithHash:
    def __hash__(self):
        run("__hash__")
        return 1


class Meta(type):
    @property
    def hidden(cls):
        run("property")
        return nn.Linear


class WithProperty(metaclass=Meta):
    pass


def forge(folder, change, name="forged.safetensors"):
    """A file of `Net` whose skeleton was changed, with a right checksum."""
    path = setpoint.save(Net(), folder / name)
    container = read_container(path)
    about = skeleton.parse_skeleton(container.metadata["skeleton"])
    changed = change(about)
    texts = {key: text for key, text in container.metadata.items() if key not in ("setpoint", "checksum")}
    texts["skeleton"] = skeleton.dump_skeleton(about if changed is None else changed)
    write_container(path, dict(container.tensors), texts)
    return path


def refused(path, **options):
    """What loading a file complains of, having imported and run nothing."""
    before = set(sys.modules)
    WATCHING.append(1)
    try:
        with pytest.raises(ArchiveError) as caught:
            setpoint.load_model(path, **options)
    finally:
        WATCHING.clear()
    assert set(sys.modules) == before
    assert not EVENTS
    return str(caught.value)


def naming(name, where):
    """A change that puts a name to use."""

    def change(about):
        about["names"].append(name)
        number, (root, *_) = len(about["names"]) - 1, about["modules"]
        if where == "module":
            about["modules"].append({"class": number, "training": True})
            root["children"]["evil"] = len(about["modules"]) - 1
        elif where == "object":
            about["objects"].append({"class": number, "state": {"args": "touch x"}})
            root["attributes"]["evil"] = {"object": len(about["objects"]) - 1}
        elif where == "partial":
            root["attributes"]["act"] = {"partial": [number, ["touch x"], {"dict": []}]}
        elif where == "member":
            root["attributes"]["act"] = {"member": [number, "evil"]}
        else:
            root["attributes"]["act"] = {where: number}

    return change


HERE = "test_hostile_models"
NAMES = [
    "os:system",
    "posix:system",
    "nt:system",
    "subprocess:Popen",
    "subprocess:call",
    "builtins:exec",
    "builtins:eval",
    "builtins:open",
    "builtins:__import__",
    "importlib:import_module",
    "torch:load",
    "torch.serialization:load",
    "torch:os",
    "torch.hub:load",
    "torch.utils.cpp_extension:load",
    "torch:nn",
    "pickle:loads",
    "functools:partial",
    "types:FunctionType",
    f"{HERE}:WithDel",
    f"{HERE}:WithNew",
    f"{HERE}:WithSetState",
    f"{HERE}:ValueWithDel",
    f"{HERE}:ValueWithReduce",
    f"{HERE}:WithProperty.hidden",
    f"{HERE}:ValueWithDel.__del__",
    f"{HERE}:Net.forward",
    f"{HERE}:json",
    "setpoint.cli:main",
    "this:s",
    "antigravity:geohash",
    "__main__:main",
    "setpoint.__main__:main",
    "",
    ":",
    "..os:system",
]


@pytest.mark.parametrize("where", ["module", "object", "function", "class", "partial", "member"])
@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_to_what_is_no_part_of_a_model(name, where, tmp_path):
    path = forge(tmp_path, naming(name, where))
    for trusted in ((), ("setpoint",)):
        refused(path, trusted=trusted)
    assert "antigravity" not in sys.modules


def test_the_forger_can_also_make_a_good_file(tmp_path):
    found = setpoint.load_model(forge(tmp_path, naming("torch:relu", "function")))
    assert found.act is torch.relu
    found = setpoint.load_model(forge(tmp_path, naming(f"{HERE}:run", "function")))
    assert found.act is run, "a function of the package of the model's own class is part of the model"
    found = setpoint.load_model(forge(tmp_path, naming("torch.nn.modules.linear:Identity", "module")))
    assert type(found.evil) is nn.Identity


def test_functions_of_packages_that_no_module_is_from_are_refused(tmp_path):
    assert "setpoint.functional.hoyer.hoyer; possible are" in refused(
        forge(tmp_path, naming("setpoint.functional.hoyer:hoyer", "function"))
    )


def test_own_functions_get_no_arguments_beforehand(tmp_path):
    assert f"{HERE}.run; possible are functions of torch" in refused(forge(tmp_path, naming(f"{HERE}:run", "partial")))


@pytest.mark.parametrize(
    "attribute",
    ["_forward_hooks", "_forward_pre_hooks", "_modules", "_parameters", "training", "_compiled_call_impl"],
)
def test_what_torch_keeps_of_a_module_is_not_to_be_set(attribute, tmp_path):
    def change(about):
        about["modules"][0]["attributes"][attribute] = {"dict": [[0, {"function": about["names"].index("torch:tanh")}]]}

    assert attribute in refused(forge(tmp_path, change))


@pytest.mark.parametrize("attribute", ["__class__", "__dict__", "__call__", "__reduce__"])
@pytest.mark.parametrize("table", ["modules", "objects", "tensors"])
def test_attributes_of_pythons_own_are_not_to_be_set(attribute, table, tmp_path):
    def change(about):
        key = "state" if table == "objects" else "attributes"
        about[table][0].setdefault(key, {})[attribute] = 1

    assert "is Python's own" in refused(forge(tmp_path, change))


@pytest.mark.parametrize("kind", ["set", "frozenset", "dict", "ordered"])
def test_objects_are_not_hashed(kind, tmp_path):
    def change(about):
        naming(f"{HERE}:ValueWithHash", "object")(about)
        reference = about["modules"][0]["attributes"].pop("evil")
        value = [[reference, 1]] if kind in ("dict", "ordered") else [reference]
        about["modules"][0]["attributes"]["evil"] = {kind: value}

    assert "ValueWithHash in a set, or as a key" in refused(forge(tmp_path, change))


# Imports


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose import leaves a trace, and is not repeated."""
    folder = tmp_path / "leaving_traces"
    folder.mkdir()
    for name in ("__init__", "net", "__main__"):
        (folder / f"{name}.py").write_text(
            "import pathlib\nfrom torch import nn\n"
            f"pathlib.Path(r'{tmp_path}', 'trace-{name}').touch()\n"
            "class Net(nn.Module):\n    pass\n"
            "def __getattr__(name):\n    raise SystemExit\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "leaving_traces"
    for name in [name for name in sys.modules if name.startswith("leaving_traces")]:
        del sys.modules[name]


def test_a_package_is_imported_only_if_it_is_trusted(package, tmp_path):
    path = forge(tmp_path, naming(f"{package}.net:Net", "module"))
    for trusted in ((), "leaving", "leaving_traces.other", ("leaving_traces.ne",), "setpoint"):
        text = refused(path, trusted=trusted)
        assert "code in leaving_traces.net, which is not imported here" in text
        assert "load_model(path, trusted=('leaving_traces',))" in text
    assert not list(tmp_path.glob("trace*"))
    for trusted in ("leaving_traces", "leaving_traces.net"):
        found = setpoint.load_model(path, trusted=trusted)
        assert type(found.evil).__module__ == "leaving_traces.net"
    assert {p.name for p in tmp_path.glob("trace*")} == {"trace-__init__", "trace-net"}


def test_a_package_that_is_imported_already_needs_no_trust(package, tmp_path):
    __import__(f"{package}.net")
    assert type(setpoint.load_model(forge(tmp_path, naming(f"{package}.net:Net", "module"))).evil).__name__ == "Net"


def test_the_main_module_of_a_package_is_a_program_not_a_library(package, tmp_path):
    path = forge(tmp_path, naming(f"{package}.__main__:Net", "module"))
    assert "not imported" in refused(path, trusted=package)
    assert not (tmp_path / "trace-__main__").exists()


def test_lazy_modules_are_not_asked(package, tmp_path):
    __import__(f"{package}.net")
    assert "leaving_traces.net.Missing, which is not found here" in refused(
        forge(tmp_path, naming(f"{package}.net:Missing", "module"))
    )


def test_what_a_trusted_package_cannot_import_is_said(tmp_path, monkeypatch):
    (tmp_path / "needing.py").write_text("import there_is_no_such_module\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = forge(tmp_path, naming("needing:Net", "module"))
    with pytest.raises(ArchiveError, match=r"needing, which cannot be imported: .*there_is_no_such_module"):
        setpoint.load_model(path, trusted="needing")


def test_what_the_script_that_saved_it_defined_is_looked_for_in_this_one(tmp_path, monkeypatch):
    path = forge(tmp_path, naming("__main__:Mine", "module"))
    assert "Mine, which was defined in the script that saved it, and is not in this one" in refused(path)
    mine = type("Mine", (nn.Module,), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Mine", mine, raising=False)
    assert type(setpoint.load_model(path).evil) is mine


# Nonsense


def nodes(value):
    """Every place in a JSON value, as container and key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        yield value, key
        yield from nodes(entry)


NONSENSE = [None, -1, 10**9, 1.5, "x", "", [], {}, {"object": 0}, {"tuple": 3}, {"class": -1}, {"x": 1, "y": 2}, True]


def test_any_changed_skeleton_is_refused_or_is_a_model(tmp_path):
    generator = random.Random(0)
    refusals = []
    for _ in range(150):

        def change(about):
            container, key = generator.choice(list(nodes(about)))
            container[key] = generator.choice(NONSENSE)

        path = forge(tmp_path, change)
        try:
            assert isinstance(setpoint.load_model(path), nn.Module)
        except ArchiveError as error:
            refusals.append(str(error))
    assert 50 < len(refusals) < 150
    assert all("forged.safetensors" in text for text in refusals)


def packed(text):
    return base64.b85encode(zlib.compress(text.encode())).decode()


DEEP = "[" * 100_000 + "]" * 100_000
TEXTS = ["", "x", "{}", "ab\u00fc", "c$" * 50, packed(""), packed("{"), packed("[]"), packed("{}"), packed(DEEP)]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_what_is_no_skeleton_is_refused(text, tmp_path):
    path = setpoint.save(Net(), tmp_path / "x.safetensors")
    container = read_container(path)
    texts = {"index": container.metadata["index"], "metadata": "{}", "skeleton": text}
    write_container(path, dict(container.tensors), texts)
    refused(path)


def test_the_size_of_a_skeleton_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(skeleton, "_MOST_BYTES", 1000)
    path = forge(tmp_path, lambda about: about["names"].append("x" * 2000))
    assert "larger than 1000 bytes" in refused(path)
