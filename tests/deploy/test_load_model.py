"""A model made again from its file: what comes back, and what cannot be described."""

import argparse
import copy
import enum
import functools
import types
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import setpoint
from setpoint import transforms
from setpoint.deploy import ArchiveError
from setpoint.deploy.kernels import SparseLinear
from setpoint.deploy.kernels.registry import KERNELS

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def again(model, folder, **options):
    return setpoint.load_model(setpoint.save(model, folder / "model.safetensors"), **options)


def reasons(model, folder):
    """Why a model is not made again; its weights are there all the same."""
    path = setpoint.save(model, folder / "model.safetensors")
    assert list(setpoint.load(path)) == list(model.state_dict())
    with pytest.raises(ArchiveError) as caught:
        setpoint.load_model(path)
    text = str(caught.value)
    assert "could not be described" in text
    assert "setpoint.load(path, model)" in text
    return text


class Odd(enum.Enum):
    FIRST = 1


@dataclass
class Config:
    width: int = 4
    extra: dict = field(default_factory=dict)
    training: bool = True


@dataclass(frozen=True)
class Frozen:
    width: int = 4


@dataclass(slots=True)
class Slotted:
    width: int
    left_out: int = field(init=False)


@dataclass(frozen=True, slots=True)
class FrozenSlotted:
    width: int


class Careful:
    """Has its own ideas of attributes, and a constructor that is not to run."""

    def __init__(self):
        raise AssertionError

    def __setattr__(self, name, value):
        raise AssertionError

    def __getattribute__(self, name):
        return 7 if name == "answer" else object.__getattribute__(self, name)


def careful(**state):
    made = object.__new__(Careful)
    object.__getattribute__(made, "__dict__").update(state)
    return made


def swish(x):
    return x * torch.sigmoid(x)


class Holder(nn.Module):
    """Holds whatever it is given."""

    def __init__(self, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return x


# Attributes


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -(2**70),
        0.1,
        float("inf"),
        2 + 3j,
        'a "text" \ud800 ü',
        [1, [2.5, None]],
        (1, (2, [])),
        {1, 2, (3, "x")},
        frozenset({"a", None}),
        {"a": 1, 2: "b", (3, 4): {5: 6}, None: []},
        OrderedDict([("z", 1), ("a", 2)]),
        torch.bfloat16,
        torch.device("cuda", 1),
        torch.Size([2, 3]),
        torch.channels_last,
        torch.strided,
        range(2, 9, 3),
        np.float64(0.3),
        np.int32(-5),
        np.bool_(True),
        Odd.FIRST,
        F.gelu,
        F.max_pool2d,
        torch.relu,
        torch.relu_,
        torch.special.expit,
        F.sigmoid,
        swish,
        nn.LayerNorm,
        Config(3, {"a": (1,)}),
        Frozen(5),
        FrozenSlotted(6),
        types.SimpleNamespace(a=1),
        argparse.Namespace(b=[2]),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_attributes_come_back(value, tmp_path):
    found = again(Holder(value=value), tmp_path).value
    assert type(found) is type(value)
    assert found == value
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | enum.Enum):
        assert found is value
    if isinstance(value, dict):
        assert list(found) == list(value)


def test_nan_and_unset_slots(tmp_path):
    found = again(Holder(nan=float("nan"), slotted=Slotted(3)), tmp_path)
    assert found.nan != found.nan
    assert found.slotted.width == 3
    with pytest.raises(AttributeError):
        found.slotted.left_out  # noqa: B018


def test_prepared_classes_and_functions(tmp_path):
    found = again(
        Holder(norm=functools.partial(nn.LayerNorm, eps=1e-3), act=functools.partial(F.leaky_relu, negative_slope=0.5)),
        tmp_path,
    )
    assert found.norm(4).eps == 1e-3
    assert torch.equal(found.act(-X.abs()), -X.abs() / 2)


def test_an_object_is_filled_past_its_own_code_and_stays_one(tmp_path):
    config, own = Config(), careful(answer=1, width=9)
    config.extra["itself"] = config
    model = nn.Sequential(Holder(config=config, own=own), Holder(config=config, own=own))
    found = again(model, tmp_path)
    assert found[0].config is found[1].config
    assert found[0].config.extra["itself"] is found[0].config
    assert found[0].own is found[1].own
    assert found[0].own.width == 9
    assert found[0].own.answer == 7


def test_what_refers_to_modules_and_tensors(tmp_path):
    inner = nn.Linear(4, 4)
    model = nn.Sequential(inner, nn.Sequential(inner, nn.Tanh()))
    model.hidden = [nn.Linear(4, 2)]  # in no state dict, as users of lists find out
    model.aside = {"weight": inner.weight, "mask": torch.ones(2, 4).tril(), "inner": inner}
    found = again(model, tmp_path)
    assert found[1][0] is found[0]
    assert found.aside["weight"] is found[0].weight
    assert found.aside["inner"] is found[0]
    assert torch.equal(found.aside["mask"], model.aside["mask"])
    assert type(found.hidden[0]) is nn.Linear
    assert torch.equal(found.hidden[0].weight, model.hidden[0].weight)
    assert list(found.state_dict()) == list(model.state_dict()) == list(setpoint.load(tmp_path / "model.safetensors"))


# Modules


class Oddities(nn.Module):
    def __init__(self):
        super().__init__()
        self.late = None
        self.encoder = nn.Linear(4, 4, bias=False)
        self.register_parameter("none", None)
        self.register_buffer("missing", None)
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("passing", torch.randn(4), persistent=False)
        self.short = nn.Parameter(torch.randn(4, 4, dtype=torch.bfloat16), requires_grad=False)
        self.short.note = "no decay"
        self.conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.norm = nn.BatchNorm1d(4).eval()

    def forward(self, x):
        return self.norm(self.encoder(x) + self.passing)


def test_modules_come_back_whole(tmp_path):
    torch.manual_seed(0)
    model = Oddities()
    expected = model(X)
    assert again(nn.Sequential(Holder(), model).eval(), tmp_path).training is False
    found = again(model, tmp_path)
    assert torch.equal(found(X), expected)
    assert list(found._parameters) == list(model._parameters)
    assert list(found._buffers) == list(model._buffers)
    assert list(found._modules) == list(model._modules)
    assert [m.training for m in found.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in model.parameters()]
    assert found.short.dtype == torch.bfloat16
    assert found.short.note == "no decay"
    assert found.empty.shape == (0, 3)
    assert found.late is None
    assert found.none is None
    assert found.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert "passing" not in found.state_dict()
    assert torch.equal(copy.deepcopy(found)(X), expected)
    assert repr(found) == repr(model)
    for (name, one), (other_name, other) in zip(found.state_dict().items(), model.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)


def test_saving_what_was_loaded_gives_the_same_file(tmp_path):
    first = setpoint.save(Oddities(), tmp_path / "first.safetensors")
    second = setpoint.save(setpoint.load_model(first), tmp_path / "second.safetensors")
    checksums = [setpoint.deploy.container.read_container(path).metadata["checksum"] for path in (first, second)]
    assert checksums[0] == checksums[1]


def test_ties_stay_ties_also_where_only_the_memory_is_shared(tmp_path):
    first, second, third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    third.weight = nn.Parameter(first.weight.detach())
    found = again(nn.Sequential(first, second, third), tmp_path)
    assert found[1].weight is found[0].weight
    assert found[2].weight is not found[0].weight
    with torch.no_grad():
        found[0].weight.zero_()
    assert not found[2].weight.any()


@pytest.mark.parametrize(
    "model",
    [
        nn.LSTM(4, 5, num_layers=2, bidirectional=True, batch_first=True),
        nn.GRU(4, 5, batch_first=True),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, activation="gelu"), 2),
        nn.TransformerDecoderLayer(4, 2, 8, batch_first=True),
        nn.ParameterList([torch.ones(2), torch.zeros(3)]),
        nn.ParameterDict({"a": torch.ones(2)}),
        nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.PReLU()}),
    ],
    ids=lambda model: type(model).__name__,
)
def test_modules_of_torch(model, tmp_path):
    found = again(model.eval(), tmp_path)
    assert type(found) is type(model)
    assert repr(found) == repr(model)
    x = torch.randn(2, 3, 4)
    inputs = (x, x) if isinstance(model, nn.TransformerDecoderLayer) else (x,)
    if not isinstance(model, nn.ParameterList | nn.ParameterDict | nn.ModuleDict):
        expected, outputs = model(*inputs), found(*inputs)
        first = [t[0] if isinstance(t, tuple) else t for t in (expected, outputs)]
        assert torch.equal(*first)
        first[1].sum().backward()
        assert all(p.grad is not None for p in found.parameters())


@pytest.mark.parametrize("kernel", ["csr", "bsr4", "narrow"])
def test_sparse_kernels(kernel, tmp_path):
    weight = torch.randn(8, 4) * (torch.rand(8, 4) < 0.4)
    model = nn.Sequential(SparseLinear(KERNELS[kernel].build(weight), torch.randn(8)), nn.ReLU()).eval()
    found = again(model, tmp_path)
    assert repr(found) == repr(model)
    assert torch.equal(found(X), model(X))


@pytest.mark.parametrize("kind", ["wide", "parallel", "factorized", "doped"])
def test_transformed_models(kind, tmp_path):
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    larger = transforms.sparse_ift(model, kind, 0.75, example_inputs=X).model
    found = again(larger, tmp_path)
    assert repr(found) == repr(larger)
    assert torch.equal(found(X), larger(X))


def test_compiled_and_wrapped_models_are_the_model_inside(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model[0].compile(backend="eager")
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    found = again(wrapped, tmp_path)
    assert type(found) is nn.Sequential
    assert "_compiled_call_impl" not in vars(found[0])
    part = again(nn.Sequential(torch.compile(model, backend="eager"), nn.Tanh()), tmp_path)
    assert [type(m) for m in part] == [nn.Sequential, nn.Tanh]


def test_device(tmp_path):
    found = again(Oddities(), tmp_path, device="meta")
    assert all(t.is_meta for t in (*found.parameters(), *found.buffers()))


def test_a_description_takes_little_room(tmp_path):
    model = nn.Sequential(*[nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(50)])
    whole = setpoint.save(model, tmp_path / "a.safetensors").stat().st_size
    assert whole - setpoint.save(model.state_dict(), tmp_path / "b.safetensors").stat().st_size < 8000


# What cannot be described


class Bound(nn.Module):
    def __init__(self):
        super().__init__()
        self.call = self.forward


class OwnState(nn.Module):
    def __setstate__(self, state):
        raise AssertionError


class Extra(nn.Module):
    def get_extra_state(self):
        return torch.ones(2)


class Ended(nn.Module):
    def __del__(self):
        pass


class Sulking:
    """Cannot even be asked what it is."""

    def __getattribute__(self, name):
        if name != "__class__":
            raise RuntimeError("leave me alone")
        return Sulking


def local():
    class Local(nn.Module):
        pass

    def closure(x):
        return x

    return Local(), closure


def hooked(register):
    model = nn.Sequential(nn.Linear(4, 4))
    register(model[0])
    return model


CASES = {
    "its attribute 'act' is a lambda": lambda: Holder(act=lambda x: x),
    "test_load_model.local.<locals>.closure, which was defined inside a function": lambda: Holder(act=local()[1]),
    "test_load_model.local.<locals>.Local, which was defined inside": lambda: nn.Sequential(local()[0]),
    "'0' (torch.nn.modules.linear.Linear): there are hooks (_forward_hooks)": lambda: hooked(
        lambda m: m.register_forward_hook(lambda *_: None)
    ),
    "hooks (_forward_pre_hooks)": lambda: hooked(lambda m: m.register_forward_pre_hook(lambda *_: None)),
    "hooks (_backward_hooks)": lambda: hooked(lambda m: m.register_full_backward_hook(lambda *_: None)),
    "'0.weight' (torch.nn.parameter.Parameter): there are hooks on it": lambda: hooked(
        lambda m: m.weight.register_hook(lambda g: g)
    ),
    "there are parametrizations": lambda: hooked(lambda m: nn.utils.parametrizations.weight_norm(m)),
    "its attribute 'call' is an object of class builtins.method": Bound,
    "its class is test_load_model.OwnState, which has a __setstate__ of its own": OwnState,
    "state of its own kind (get_extra_state)": Extra,
    "Ended, which has a __del__ of its own": Ended,
    "an object of class threading.Thread": lambda: Holder(thread=__import__("threading").Thread()),
    "an object of class numpy.ndarray": lambda: Holder(array=np.ones(3)),
    "path.join; possible are functions of torch on tensors": lambda: Holder(function=__import__("os").path.join),
    "posix.system": lambda: Holder(function=__import__("os").system),
    "torch.serialization.load": lambda: Holder(function=torch.load),
    "subprocess.Popen, which is no class of modules": lambda: Holder(cls=__import__("subprocess").Popen),
    "in a set, or as a key": lambda: Holder(names={careful()}),
    "'__secret__' is Python's own": lambda: Holder(__secret__=1),
    "nested too deeply, or in itself": lambda: Holder(loop=_loop()),
    "it was computed from tensors": lambda: Holder(tensor=torch.ones(3, requires_grad=True) * 2),
    "another view of the memory of 'weight'": lambda: _with_view(),
    "RuntimeError: leave me alone": lambda: Holder(odd=Sulking()),
    "which is TorchScript": lambda: torch.jit.script(nn.Linear(2, 2)),
    "GraphModule": lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2))),
    "a tensor without data": lambda: Holder(tensor=torch.ones(2, device="meta")),
}


def _loop():
    made = []
    made.append(made)
    return made


def _with_view():
    model = nn.Linear(4, 4)
    model.first_row = model.weight.detach()[0]
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("reason", CASES)
def test_what_cannot_be_described_is_saved_as_weights_and_says_why(reason, tmp_path):
    text = reasons(CASES[reason](), tmp_path)
    assert reason in text


def test_a_partial_of_a_partial_is_flattened_by_python(tmp_path):
    # functools flattens these itself, so that there is no obstacle.
    found = again(Holder(act=functools.partial(functools.partial(F.relu), inplace=True)), tmp_path)
    assert found.act.func is F.relu


def test_a_partial_of_the_users_own_function_is_refused(tmp_path):
    assert "test_load_model.swish; possible are functions of torch" in reasons(
        Holder(act=functools.partial(swish)), tmp_path
    )


def test_every_obstacle_is_named(tmp_path):
    model = nn.Sequential(*[Holder(act=lambda x: x) for _ in range(8)])
    text = reasons(model, tmp_path)
    assert "'0' (test_load_model.Holder): its attribute 'act' is a lambda" in text
    assert "'4' (" in text
    assert text.count("lambda") == 5
    assert "and 3 more" in text


def test_gates_of_a_run_are_an_obstacle_until_they_are_gone(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = setpoint.Schedule(begin=0, end=3)
    sparsifier = setpoint.Sparsifier(model, optimizer, method="l0", target=0.5, steps=4, schedule=schedule)
    assert "gates of a run that is still in its sparsify phase" in reasons(model, tmp_path)
    for _ in range(4):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
    assert sparsifier.phase == "frozen"
    found = again(model, tmp_path)
    assert torch.equal(found(X), model(X))


def test_a_state_dict_is_no_model(tmp_path):
    path = setpoint.save(nn.Linear(2, 2).state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(ArchiveError, match="holds a state dict"):
        setpoint.load_model(path)
    with pytest.raises(FileNotFoundError):
        setpoint.load_model(tmp_path / "none.safetensors")
