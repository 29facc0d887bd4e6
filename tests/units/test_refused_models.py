"""What no run can train is refused in a sentence, before anything is looked for."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import setpoint
from setpoint.units import Selection, select
from setpoint.units.coupled import select_coupled
from setpoint.wiring import derive, explain


def linear():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


SOME = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
X = torch.randn(2, 4)


def on_meta():
    with torch.device("meta"):
        return linear()


MODELS = {
    "none": (lambda: None, TypeError, "model must be a torch.nn.Module, not NoneType"),
    "text": (lambda: "resnet20", TypeError, "model must be a torch.nn.Module, not str"),
    "class": (lambda: nn.Linear, TypeError, r"model is the class Linear, not a model: pass an instance, Linear\("),
    "empty": (nn.ReLU, ValueError, "the model has no parameters"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4)), ValueError, r"'0.weight' has no shape .* run one on example"),
    "script": (lambda: torch.jit.script(linear()), ValueError, "the model is a ScriptModule"),
    "traced": (lambda: torch.jit.trace(linear(), X), ValueError, "the model is a ScriptModule"),
    "part of script": (lambda: nn.Sequential(torch.jit.script(linear())), ValueError, "'0' is a ScriptModule"),
    "meta": (on_meta, ValueError, r"'0.weight' is on the meta device .*model.to_empty\(device="),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("unit", ["weight", "neuron"])
@pytest.mark.parametrize("kind", MODELS)
def test_what_is_no_model_or_cannot_be_trained(kind, unit):
    make, error, words = MODELS[kind]
    with pytest.raises(error, match=words):
        setpoint.Sparsifier(make(), SOME, target=0.5, unit=unit, steps=9, example_inputs=X)


def test_a_lazy_model_is_taken_after_its_first_forward_pass():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    model(X)
    selection = select(model, torch.optim.SGD(model.parameters()), "weight")
    assert [layer.name for layer in selection.layers] == ["0.weight", "1.weight"]


@pytest.mark.parametrize("optimizer", [None, torch.optim.SGD, "sgd"])
def test_what_is_no_optimizer(optimizer):
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, .*not (NoneType|type|str)"):
        setpoint.Sparsifier(linear(), optimizer, target=0.5, steps=9)


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_dtypes_that_are_not_real_or_too_short(dtype):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).to(dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=rf"'1.weight' has dtype {dtype}; only real .* exclude="):
        select(model, optimizer, "weight")
    assert select(model, optimizer, "weight", exclude="1.*").left == {"1.weight": "exclude= leaves it out"}


@pytest.mark.parametrize("unit", ["weight", "neuron"])
@pytest.mark.parametrize("given", [3, [3], (b"x",), [None], ["0.*", 1.5]])
@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_globs_are_strings(argument, given, unit):
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=rf"{argument}=.*: a glob or name is a string such as"):
        setpoint.Sparsifier(model, optimizer, target=0.5, unit=unit, steps=9, example_inputs=X, **{argument: given})


@pytest.mark.parametrize("unit", [3, None, True, ("a", "b"), ("neuron", "head"), (2,), (2, 2.0), ["row"], 0.5])
def test_what_names_no_unit(unit):
    with pytest.raises(TypeError, match=r"names no unit; possible: weight, .*channel, neuron, head, layer, \(height"):
        setpoint.Sparsifier(linear(), SOME, target=0.5, unit=unit, steps=9)


@pytest.mark.parametrize(
    ("unit", "meant"), [("chanel", "channel"), ("neurons", "neuron"), ("Row", "row"), ("heads", "head")]
)
def test_a_unit_that_is_nearly_right(unit, meant):
    with pytest.raises(ValueError, match=rf"{unit!r} is none of .*neuron, head, layer.*; did you mean '{meant}'\?"):
        setpoint.Sparsifier(linear(), SOME, target=0.5, unit=unit, steps=9)


def test_a_unit_that_is_quite_wrong_is_not_explained_away():
    with pytest.raises(ValueError, match=r"'2:4:8' is none of [^?]*$"):
        setpoint.Sparsifier(linear(), SOME, target=0.5, unit="2:4:8", steps=9)


@pytest.fixture
def group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def whole_fsdp(mesh):
    return FullyShardedDataParallel(linear(), device_id=torch.device("cpu"))


def part_fsdp(mesh):
    model = linear()
    model[2] = FullyShardedDataParallel(model[2], device_id=torch.device("cpu"))
    return model


def fsdp2(mesh):
    return fully_shard(linear(), mesh=mesh)


def tensor_parallel(mesh):
    return parallelize_module(linear(), mesh, {"2": ColwiseParallel()})


SHARDED = {
    whole_fsdp: r"'[\w.]*_flat_param' is sharded by FullyShardedDataParallel",
    part_fsdp: r"'2\.[\w.]*_flat_param' is sharded by FullyShardedDataParallel",
    fsdp2: r"'0\.weight' is sharded by DTensor",
    tensor_parallel: r"'2\.weight' is sharded by DTensor",
}


@pytest.mark.filterwarnings("ignore")
def test_sharded_parameters(group):
    for shard, words in SHARDED.items():
        model = shard(group)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for attempt in (
            lambda: select(model, optimizer, "weight"),  # noqa: B023
            lambda: select_coupled(model, optimizer, "neuron", X),  # noqa: B023
            lambda: setpoint.Sparsifier(model, optimizer, target=0.5, steps=9),  # noqa: B023
        ):
            with pytest.raises(ValueError, match=rf"{words}.*possible: DistributedDataParallel, or prune before"):
                attempt()


@pytest.mark.parametrize("unit", ["weight", "neuron"])
def test_submodules_that_were_compiled_keep_their_names(unit):
    model = linear()
    model[0], model[2] = torch.compile(model[0]), torch.compile(model[2])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = setpoint.Sparsifier(
        torch.compile(model), optimizer, method="magnitude", target=0.3, unit=unit, steps=9, example_inputs=X
    )
    run.freeze()
    assert {name for name in run.masks if name.endswith("weight")} == {"0.weight", "2.weight"}
    names = [layer.name for layer in run.report().layers]
    assert names == (["0.weight", "2.weight"] if unit == "weight" else ["0"])
    assert run.report().exact
    assert isinstance(run._selection, Selection)


def test_example_inputs_in_every_form():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x, scale=None):
            x = x[0] if isinstance(x, list) else x
            return self.second(torch.relu(self.first(x)))

    model = Two()
    for inputs in (X, (X,), (X, X), {"x": X}, {"x": X, "scale": X}, [X]):
        assert [group.name for group in derive(model, inputs).groups] == ["first"]
        assert "first: 6 of kind neuron" in explain(model, inputs)
    assert [group.name for group in derive(model, (), {"x": X}).groups] == ["first"]


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.first(x)
        return self.second(x if x.sum() > 0 else -x)


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (Branching(), X, r"data-dependent expression .*\(test_refused_models\.py:\d+, in forward\)"),
        (linear(), [X], r"must be Tensor, not list .*a list is the only argument: several are a tuple"),
        (linear(), X[:, :3], r"."),
        (linear(), (X, X), r"takes 2 positional arguments but 3 were given"),
        (linear(), {"z": X}, r"unexpected keyword argument 'z'"),
        (linear(), None, r"example_inputs is None"),
    ],
    ids=["branching", "list", "size", "too many", "unknown name", "none"],
)
def test_a_model_that_cannot_be_traced_is_refused_in_one_sentence(model, inputs, words, capfd):
    with pytest.raises(
        ValueError, match=rf"^torch\.export cannot trace the model with these inputs: .*{words}"
    ) as told:
        derive(model, inputs)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 300
    assert told.value.__cause__ is not None
    assert "def forward" not in capfd.readouterr().err
