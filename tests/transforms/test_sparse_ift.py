"""The promise: the operations of the dense model, exactly the counts that were handed out, and clear refusals."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transform_nets import SMALL, TOKENS, LanguageModel, Residual

import setpoint
from setpoint.transforms import SparseIFT, fold, sparse_ift

KINDS = ("wide", "parallel", "factorized", "doped")


def train(model, optimizer, inputs, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = model(inputs)
        outputs = outputs.flatten(0, -2)
        labels = torch.arange(len(outputs)) % outputs.shape[1]
        F.cross_entropy(outputs, labels).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("build", "inputs"), [(Residual, SMALL), (LanguageModel, TOKENS)])
def test_a_run_ends_with_exactly_the_counts_that_were_handed_out(kind, build, inputs):
    torch.manual_seed(0)
    result = sparse_ift(build(), kind, 0.75, example_inputs=inputs)
    model = result.model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    sparsifier = setpoint.Sparsifier(
        model,
        optimizer,
        method="magnitude",
        target=result.target,
        scope=result.scope,
        include=result.include,
        steps=6,
    )
    assert {la.name for la in sparsifier.report().layers} == {la.name for la in result.layers}
    train(model, optimizer, inputs, 6)
    for layer in result.layers:
        assert int(torch.count_nonzero(model.get_parameter(layer.name))) == layer.kept
    dense = [p for n, p in model.named_parameters() if n not in sparsifier.masks and p.ndim > 1]
    assert all(bool((p != 0).all()) for p in dense)
    report = sparsifier.report()
    assert report.exact
    assert report.params_kept == sum(la.kept for la in result.layers)
    assert sum(int(torch.count_nonzero(p)) for p in model.parameters()) <= result.parameters_kept
    if kind != "wide":
        model.eval()
        with torch.no_grad():
            one, other = model(inputs), fold(model)(inputs)
        assert float((one - other).abs().max()) <= 1e-5 * float(one.abs().max())


def test_the_scope_rounds_to_whole_numbers_in_weights_of_any_size():
    layers = [
        setpoint.transforms.SparseLayer(f"w{i}", (n,), n, k, 1)
        for i, (n, k) in enumerate([(3, 1), (10**9 + 7, 333_333_333), (2**33 + 1, 2**31 - 1), (7, 6), (10**10, 1)])
    ]
    result = SparseIFT("wide", 0.5, nn.Identity(), tuple(layers), {}, 1, 0, 1, 1)
    for layer, sparsity in zip(layers, result.scope.values()):
        assert round(layer.entries * (1.0 - sparsity)) == layer.kept


def test_names_with_wildcards_in_them():
    inner = nn.ModuleDict({"a[0]": nn.Linear(8, 16), "b*": nn.Linear(16, 16), "c": nn.Linear(16, 4)})

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            for layer in self.inner.values():
                x = layer(x)
            return x

    result = sparse_ift(Named(), "doped", 0.5, example_inputs=torch.zeros(1, 8))
    optimizer = torch.optim.SGD(result.model.parameters(), lr=0.1)
    sparsifier = setpoint.Sparsifier(
        result.model,
        optimizer,
        method="magnitude",
        target=result.target,
        scope=result.scope,
        include=result.include,
        steps=4,
    )
    assert set(sparsifier.masks) == {"inner.b*.layer.weight"}


def test_the_model_given_stays_as_it_is():
    model = Residual().train()
    model.norm1.eval()
    before = {name: (id(t), t._version, t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    for kind in KINDS:
        result = sparse_ift(model, kind, 0.75, example_inputs=SMALL)
        assert result.model is not model
        assert result.model.training
        names = dict(model.state_dict(keep_vars=True))
        assert {name: (id(t), t._version) for name, t in names.items()} == {n: v[:2] for n, v in before.items()}
        assert all(torch.equal(t, before[name][2]) for name, t in names.items())
        assert not any(p is q for p in model.parameters() for q in result.model.parameters())


def test_the_same_seed_gives_the_same_model():
    def draw(kind):
        torch.manual_seed(5)
        return sparse_ift(Residual(), kind, 0.75, example_inputs=SMALL).model.state_dict()

    for kind in KINDS:
        one, other = draw(kind), draw(kind)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_result_in_words_and_as_json():
    result = sparse_ift(Residual(), "parallel", 0.75, example_inputs=SMALL, exclude="fc1")
    words = str(result)
    assert words.startswith("sparse parallel for a sparsity of 0.75\n")
    assert f"FLOPs: {result.flops:,}, of the dense model {result.dense_flops:,} (" in words
    assert f"({result.stored_flops / result.dense_flops:.2f}x)" in words
    assert "stays dense: stem.weight, it reads the model's input" in words
    assert all(la.name in words for la in result.layers)
    read = json.loads(json.dumps(result.to_dict()))
    assert (read["flops"], read["kind"], len(read["layers"])) == (result.flops, "parallel", len(result.layers))
    assert result.scope.keys() == set(result.include)
    with pytest.raises(AttributeError):
        result.kind = "wide"


def test_transformed_models_compile_train_save_and_load(tmp_path):
    for kind in KINDS:
        model = sparse_ift(Residual(), kind, 0.5, example_inputs=SMALL).model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        train(torch.compile(model, backend="eager", fullgraph=True), optimizer, SMALL, 2)
        setpoint.save(model, tmp_path / f"{kind}.safetensors")
        other = copy.deepcopy(model)
        nn.init.zeros_(other.fc2.weight)
        setpoint.load(tmp_path / f"{kind}.safetensors", other)
        assert torch.equal(other.eval()(SMALL), model.eval()(SMALL))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.last = (nn.Linear(8, 8) for _ in range(4))
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.last(F.relu(self.b(F.relu(self.a(F.relu(self.stem(x)))))))


class Frozen(Tied):
    def __init__(self):
        super().__init__()
        self.b.weight = nn.Parameter(torch.rand(8, 8))
        self.a.weight.requires_grad_(False)


VECTOR = torch.zeros(1, 8)
LAYERS = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (LAYERS, {"kind": "broad"}, "kind='broad' is none of wide, parallel, factorized, doped"),
        (LAYERS, {"sparsity": 0.0}, "sparsity=0.0 must lie strictly between 0 and 1"),
        (LAYERS, {"sparsity": 1.0}, "sparsity=1.0 must lie"),
        (LAYERS, {"sparsity": 75}, "sparsity=75 must lie"),
        (LAYERS, {"kind": "parallel", "sparsity": 0.3}, "makes 1.429 copies .* from 1/3 on there are two"),
        (LAYERS, {"kind": "doped", "sparsity": 0.2}, "'1' with 8 inputs and 8 outputs .* too small .*exclude='1'"),
        (LAYERS, {"kind": "factorized", "inner": "tanh"}, "inner='tanh' is none of"),
        (LAYERS, {"kind": "doped", "inner": "norm"}, "'doped' has no such place"),
        (LAYERS, {"kind": "doped", "initialise": "grow"}, "'doped' takes 'fresh'"),
        (LAYERS, {"initialise": "old"}, "initialise='old' is none of"),
        (LAYERS, {"kind": "doped", "include": "9.*"}, r"include='9.\*' matches no layer; possible: 0.weight, 1.weight"),
        (LAYERS, {"kind": "doped", "exclude": "9"}, "exclude='9' matches no layer"),
        (LAYERS, {"kind": "doped", "exclude": "1"}, "no layer can be replaced .*0.weight: it reads the model's input"),
        (nn.ReLU(), {"kind": "doped"}, "the model has no layer to replace"),
        (nn.Linear(8, 8), {"kind": "parallel"}, "no layer can be replaced"),
        (Tied(), {"kind": "parallel"}, "layer 'a' shares its weight with 'b', which would be untied.*exclude='a'"),
        (Frozen(), {"kind": "doped", "include": "a"}, "layer 'a' was asked for by name, but it is frozen"),
    ],
)
def test_what_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        sparse_ift(model, example_inputs=VECTOR, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_transformed_once(kind):
    result = sparse_ift(Residual(), kind, 0.75, example_inputs=SMALL)
    with pytest.raises(ValueError, match=f"the model was transformed before, to kind '{kind}': begin with a dense one"):
        sparse_ift(result.model, "doped", example_inputs=SMALL)
    with pytest.raises(ValueError, match="its module '0' was transformed before"):
        sparse_ift(nn.Sequential(copy.deepcopy(result.model)), "wide", example_inputs=SMALL)
    if kind != "wide":
        sparse_ift(fold(result.model), "doped", example_inputs=SMALL)


def test_layers_that_are_left_are_told_with_the_reason():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.plain, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.hooked, self.frozen, self.unused, self.read = (nn.Linear(8, 8) for _ in range(4))
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
            self.quantized = nn.modules.linear.NonDynamicallyQuantizableLinear(8, 8)
            self.hooked.register_forward_hook(lambda *call: None)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            x = self.hooked(self.plain(self.stem(x)))
            x = self.quantized(self.normed(self.frozen(x)))
            return self.last(self.read(x) + x @ self.read.weight)

    result = sparse_ift(Several(), "doped", 0.75, example_inputs=VECTOR)
    assert [la.name for la in result.layers] == ["plain.layer.weight"]
    assert result.left_dense == {
        "stem.weight": "it reads the model's input",
        "last.weight": "it makes the model's output",
        "hooked.weight": "it has hooks, which would be lost",
        "frozen.weight": "it is frozen (requires_grad is False)",
        "unused.weight": "the example inputs do not pass through it",
        "read.weight": "its weight is read outside of it, in 'the model itself'",
        "normed.weight": "its weight is computed from other parameters",
        "quantized.weight": "a NonDynamicallyQuantizableLinear is not known: Linear and convolutions, not transposed, "
        "are possible",
    }


def test_a_layer_named_in_full_is_replaced_wherever_it_stands():
    result = sparse_ift(LAYERS, "doped", 0.75, example_inputs=VECTOR, include=["2", "1.weight"])
    assert [la.name for la in result.layers] == ["1.layer.weight", "2.layer.weight"]


def test_wrappers_of_the_whole_model_are_seen_through_and_compiled_parts_refused():
    result = sparse_ift(torch.compile(LAYERS, backend="eager"), "doped", example_inputs=VECTOR)
    assert type(result.model) is nn.Sequential
    parts = nn.Sequential(LAYERS[0], torch.compile(LAYERS[1], backend="eager"), LAYERS[2])
    with pytest.raises(ValueError, match="module '1' is compiled: transform the model first"):
        sparse_ift(parts, "doped", example_inputs=VECTOR)


def test_layers_that_the_model_reads_into_are_named():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with pytest.raises(ValueError, match=r"has no attribute 'weight' \(of layers .* exclude=\['linear1'\]\)"):
        sparse_ift(model, "doped", example_inputs=torch.zeros(1, 4, 8))
