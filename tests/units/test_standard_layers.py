"""Weights of every standard layer are taken by default, and a unit is the same in every order of storage."""

import itertools

import pytest
import torch
from standard_layers import NETS, Attention, Experts, Recurrent, build, matrices
from torch import nn

import setpoint
from setpoint.budget import count_flops
from setpoint.units import Layout, select
from test_contract import METHODS

STEPS = 10
UNITS = ("weight", "row", "column", "2:4", (4, 4))


def chosen(model, unit="weight", **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return select(model, optimizer, unit, **options)


@pytest.mark.parametrize("net", NETS)
def test_all_products_are_covered_by_default(net):
    model, _, _ = build(net)
    selection = chosen(model)
    taken = [layer.name for layer in selection.layers]
    assert taken == [name for name, p in model.named_parameters() if p.ndim >= 2]
    assert selection.left == {}
    assert selection.model_params == sum(p.numel() for p in model.parameters())


def units_of(model, name, unit):
    """The units of a parameter, each with all of its entries, by loops over plain matrices."""
    tensors = matrices(model, name)
    if len(tensors) > 1 and not isinstance(model, Experts) and unit != "2:4":
        # Of two inputs: a row reads both, a column one of the first, and the first is the outer axis of the matrix.
        tensors = [torch.stack(tensors, 2).flatten(1)] if unit != "column" else [torch.cat(tensors)]
    for matrix in tensors:
        if unit == "weight":
            yield from matrix.flatten()
        elif unit in ("row", "column"):
            yield from matrix if unit == "row" else matrix.T
        elif unit == "2:4":
            yield from (group for row in matrix for group in row.split(4))
        else:
            yield from (tile for band in matrix.split(4) for tile in band.split(4, 1))


def cases() -> list:
    """Every kind of layer meets every method, and every unit twice."""
    found = {(net, "magnitude", unit): None for net in NETS for unit in UNITS}
    for (i, net), (j, method) in itertools.product(enumerate(NETS), enumerate(METHODS)):
        found[net, method, UNITS[(i + j) % len(UNITS)]] = None
    return list(found)


@pytest.mark.parametrize(("net", "method", "unit"), cases())
def test_every_method_meets_its_target(net, method, unit):
    model, optimizer, x = build(net)

    def sparsifier():
        return setpoint.Sparsifier(model, optimizer, method=method, target=0.4, unit=unit, steps=STEPS)

    if method == "l0" and net in ("lstm", "gru"):
        with pytest.raises(ValueError, match=r"'layer.weight_ih_l0'.*cannot be gated: .*; leave it out by exclude="):
            sparsifier()
        return
    run = sparsifier()
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    report = run.report()
    assert report.exact
    assert bool(torch.isfinite(model(x)).all())
    for layer in report.layers:
        units = list(units_of(model, layer.name, unit))
        assert len(units) == layer.units
        kept = sum(int((u != 0).sum()) > (2 if unit == "2:4" else 0) for u in units)
        assert kept <= layer.units_kept
        if unit != "2:4" and method not in ("set", "rigl"):  # what grows begins at zero
            assert kept == layer.units_kept


def test_rows_of_both_orders_of_storage_are_the_same_units():
    for unit in UNITS:
        runs = []
        for transposed in (False, True):
            torch.manual_seed(0)
            model = Experts(transposed)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            run = setpoint.Sparsifier(model, optimizer, method="magnitude", target=0.4, unit=unit, steps=9)
            run.freeze()
            runs.append(torch.cat([m.flatten() for name in ("up", "down") for m in matrices(model, name)]))
        assert torch.equal(*runs)


def test_a_transposed_linear_is_a_linear():
    transformers = pytest.importorskip("transformers")
    for unit in UNITS:
        torch.manual_seed(0)
        linear, other = nn.Linear(8, 12), transformers.pytorch_utils.Conv1D(12, 8)
        other.weight.data.copy_(linear.weight.data.T)
        for model in (linear, other):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            setpoint.Sparsifier(model, optimizer, method="magnitude", target=0.4, unit=unit, steps=9).freeze()
        assert torch.equal(linear.weight, other.weight.T)
        assert bool((linear.weight == 0).any())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("unit", UNITS)
def test_a_forward_pass_shows_which_axes_are_inputs(unit, transposed):
    model, told = Experts(transposed, told=False), Experts(transposed)
    if unit == "weight":
        assert len(chosen(model, unit).layers) == 2
        return
    with pytest.raises(ValueError, match=r"up, down: which of its axes .* pass example_inputs=.*unit='weight'"):
        chosen(model, unit)
    found = chosen(model, unit, example_inputs=torch.randn(2, 8))
    assert [la.partition for la in found.layers] == [la.partition for la in chosen(told, unit).layers]


def test_a_matrix_of_an_unknown_module_is_read_as_it_is_multiplied():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(4, 5))
            self.place = nn.Parameter(torch.randn(2, 3))

        def forward(self, x):
            return nn.functional.linear((x + self.place) @ self.first, self.second)

    model = Plain()
    with pytest.raises(ValueError, match="include= takes it by name"):
        chosen(model)
    assert [la.name for la in chosen(model, include="*").layers] == ["first", "second", "place"]
    with pytest.raises(ValueError, match=r"'first' was asked for by name, but which of its axes"):
        chosen(model, "row", include=["first", "second"])
    found = chosen(model, "row", include="*", example_inputs=torch.randn(2, 3))
    assert {la.name: la.counts[1] for la in found.layers} == {"first": 5, "second": 4}
    assert "does not show" in found.left["place"]
    with pytest.raises(ValueError, match=r"the model cannot be run on example_inputs: .*in forward"):
        chosen(model, "row", include="*", example_inputs=torch.randn(2, 7))


def test_experts_of_the_transformers_library():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts_per_tok": 2, "num_local_experts": 4}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads, use_cache=False))
    selection = chosen(model, "row")
    counts = {layer.name.rpartition(".")[2]: layer.counts for layer in selection.layers if "experts" in layer.name}
    assert counts == {"gate_up_proj": (4, 24, 1, 1), "down_proj": (4, 8, 1, 1)}
    assert list(selection.left) == ["model.embed_tokens.weight", "model.layers.0.mlp.gate.weight"]
    assert sum(la.parts[0].parameter.numel() for la in selection.layers) > 0.8 * selection.model_params
    # However its products are computed, a forward pass shows the same.
    for kind in ("eager", "grouped_mm"):
        model.set_experts_implementation(kind)
        experts = model.model.layers[0].mlp.experts
        experts.is_transposed = 0  # which tells nothing
        shown = chosen(model.eval(), "row", include="*experts*", example_inputs=torch.randint(20, (2, 5))).layers
        assert {layer.name.rpartition(".")[2]: layer.counts for layer in shown} == counts
        experts.is_transposed = False


def test_tiles_lie_within_one_matrix():
    layout = Layout((3, 6, 4), stacked=True)
    tiles = setpoint.units.partition((4, 4), layout)
    assert tiles.counts == (3, 2, 1)
    assert int(tiles.sizes().expand(tiles.counts).sum()) == 72
    weight = torch.randn(3, 6, 4)
    norms = tiles.magnitudes(weight)
    assert norms[2, 1, 0] == pytest.approx(float(weight[2, 4:].norm()))
    factors = torch.ones(3, 2, 1)
    factors[1, 0] = 0
    assert torch.equal(
        tiles.expand(factors, weight) == 0,
        torch.zeros(3, 6, 4).index_put_((torch.tensor(1), torch.arange(4)), torch.ones(4, 4)).bool(),
    )


def test_densities_after_erdos_and_renyi_are_those_of_one_expert():
    torch.manual_seed(0)
    stacked = Experts(False)
    apart = nn.ModuleList(nn.Linear(n, m, bias=False) for n, m in [(8, 12)] * 3 + [(12, 4)] * 3)
    kept = []
    for model in (stacked, apart):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = setpoint.Sparsifier(model, optimizer, method="magnitude", target=0.6, scope="erk", steps=9)
        run.freeze()
        kept.append([layer.params_kept for layer in run.report().layers])
    assert kept[0][0] == pytest.approx(sum(kept[1][:3]), abs=3)
    assert kept[0][1] == pytest.approx(sum(kept[1][3:]), abs=3)


@pytest.mark.parametrize("net", ["lstm", "gru", "cells", "attention", "attention apart", "transposed", "experts"])
def test_operations_of_an_entry_are_those_that_are_counted(net):
    model, optimizer, x = build(net)
    target = setpoint.Target(flops=0.5)
    run = setpoint.Sparsifier(model, optimizer, method="magnitude", target=target, steps=9, example_inputs=x)
    by_parameter, _ = count_flops(model, x)
    for layer, costs in zip(run._layers, run._budgets[0].costs):
        assert float(costs) * layer.parts[0].parameter.numel() == pytest.approx(by_parameter[layer.name])
    run.freeze()
    assert run.report().exact


def test_operations_that_are_not_the_same_for_all_entries_are_refused():
    class Cross(Attention):
        def forward(self, x):
            return self.head(self.layer(x, x[:, :2], x[:, :2])[0])

    class Routed(Experts):
        def forward(self, x):
            return self._one(x, self.up[0]) + self._one(x[:1], self.up[1])

    for model, name in ((Cross(), "layer.in_proj_weight"), (Routed(False), "up"), (NETS["bilinear"](), "layer.weight")):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ValueError, match=f"the operations that the entries of '{name}'.*a target in params"):
            setpoint.Sparsifier(
                model, optimizer, target=setpoint.Target(flops=0.5), steps=9, example_inputs=torch.randn(6, 5, 8)
            )


@pytest.mark.parametrize("training", [True, False])
def test_gates_on_attention_multiply_what_it_reads(training):
    model, optimizer, x = build("attention")
    run = setpoint.Sparsifier(model, optimizer, method="l0", target=0.4, unit="row", steps=STEPS)
    for _ in range(4):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert run.phase == "sparsify"
    model.train(training)
    layer = next(i for i, la in enumerate(run._layers) if la.name == "layer.in_proj_weight")
    gates = 0.5 + 0.5 * (torch.arange(24) % 2)
    with torch.no_grad():
        run._gates.put(layer, *[gates.reshape(run._layers[layer].counts)] * 2)
        for i, other in enumerate(run._layers):
            if i != layer:
                run._gates.put(i, *[torch.ones(other.counts)] * 2)
        gated = model(x)
        run.remove()
        dense = model(x)
        model.layer.in_proj_weight.mul_(gates[:, None])
        assert torch.allclose(gated, model(x), atol=1e-6)
        assert not torch.allclose(gated, dense, atol=1e-3)


def test_recurrent_layers_keep_their_kernels():
    model, optimizer, x = build("lstm")
    flat = [id(w) for w in model.layer._flat_weights]
    run = setpoint.Sparsifier(model, optimizer, method="magnitude", target=0.9, steps=3)
    run.freeze()
    assert [id(w) for w in model.layer._flat_weights] == flat
    zeroed = Recurrent(nn.LSTM)
    zeroed.load_state_dict(model.state_dict())
    assert torch.allclose(model(x), zeroed(x), atol=1e-6)
