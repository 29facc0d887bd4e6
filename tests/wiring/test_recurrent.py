"""Recurrent layers and cells: one group of hidden units, and smaller layers that compute the same."""

import copy

import pytest
import torch
import wiring_recurrent as nets
from torch import nn

from setpoint.wiring import check, derive
from setpoint.wiring.check import clear

LAYERS = [nn.LSTM, nn.GRU, nn.RNN]
CELLS = [nn.LSTMCell, nn.GRUCell, nn.RNNCell]
OPTIONS = {
    "plain": {},
    "deep": {"num_layers": 3, "batch_first": True, "bias": False},
    "both directions": {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
}
X = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(0))
GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


def groups(wiring):
    return [(group.name, group.kind, group.size) for group in wiring.groups]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_have_one_group_of_hidden_units(kind, options):
    model = nets.Reader(kind, **OPTIONS[options])
    for training in (True, False):
        wiring = derive(model.train(training), X)
        assert groups(wiring) == [("inputs", "neuron", 5), ("layer", "neuron", 6)]
    check(model, wiring, X)


def test_a_relu_and_a_sequence_without_a_batch():
    model = nets.Reader(nn.RNN, nonlinearity="relu")
    wiring = derive(model, X[:, 0])
    assert len(wiring.groups) == 2
    check(model, wiring, X[:, 0])


@pytest.mark.parametrize("kind", LAYERS)
def test_states_that_are_learned_read_last_or_handed_on(kind):
    for build, expected in (
        (nets.LastStates, ("layer", "neuron", 6)),
        (nets.EncoderDecoder, ("encoder", "hidden", 6)),
        (nets.Residual, ("inputs", "hidden", 6)),
    ):
        model = build(kind)
        wiring = derive(model, X)
        assert groups(wiring) == [expected]
        check(model, wiring, X)


@pytest.mark.parametrize("kind", CELLS)
def test_cells_in_a_loop(kind):
    model = nets.Steps(kind)
    wiring = derive(model, X)
    assert groups(wiring) == [("begin", "neuron", 6)]
    check(model, wiring, X)
    wiring.resize(model, {"begin": torch.tensor([0, 3])})
    assert (model.cell.input_size, model.cell.hidden_size) == (4, 2)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_unit_is_its_rows_in_every_gate_and_its_columns_in_every_layer(kind):
    wiring = derive(nets.Reader(kind, num_layers=2, bidirectional=True), X)
    found = {(s.tensor, s.axis, s.role): s.index[1].tolist() for s in wiring["layer"].slices}
    rows = [1 + 6 * gate for gate in range(GATES[kind])]
    for layer in ("0", "0_reverse", "1", "1_reverse"):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            assert found.pop((f"layer.{name}_l{layer}", 0, "produces")) == rows
        assert found.pop((f"layer.weight_hh_l{layer}", 1, "consumes")) == [1]
    for layer in ("1", "1_reverse"):
        assert found.pop((f"layer.weight_ih_l{layer}", 1, "consumes")) == [1, 7]
    assert found == {("outputs.weight", 1, "consumes"): [1, 7]}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_unit_whose_entries_are_zero_is_zero_at_every_step(kind):
    model = nets.Reader(kind, num_layers=2).eval()
    clear(model, derive(model, X)["layer"], torch.tensor([2, 5]))
    outputs, last = model.layer(torch.randn(4, 3, 5))
    for state in (outputs, *(last if isinstance(last, tuple) else [last])):
        assert bool((state[..., [2, 5]] == 0).all())
        assert bool((state[..., [0, 1, 3, 4]] != 0).all())


@pytest.mark.parametrize("kind", LAYERS)
def test_a_smaller_layer_is_an_ordinary_one(kind):
    torch.manual_seed(0)
    model = nets.Reader(kind, num_layers=2, bidirectional=True)
    derive(model, X).resize(model, {"layer": torch.tensor([0, 2, 3]), "inputs": torch.tensor([1, 4])})
    layer = model.layer
    assert (layer.input_size, layer.hidden_size) == (2, 3)
    built = nets.Reader(kind, num_layers=2, bidirectional=True)
    built.inputs, built.layer, built.outputs = nn.Linear(4, 2), kind(2, 3, 2, bidirectional=True), nn.Linear(6, 3)
    built.load_state_dict(model.state_dict())
    assert torch.equal(built(X), model(X))
    # What the kernel is given is what the optimizer moves.
    assert all(w is getattr(layer, n) for w, n in zip(layer._flat_weights, layer._flat_weights_names))
    before = model(X).detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(X).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    optimizer.step()
    assert not torch.equal(model(X), before)
    assert torch.equal(copy.deepcopy(model)(X), model(X))


def test_what_keeps_its_size_and_why():
    wiring = derive(nets.Given(), (X, torch.zeros(1, 3, 6)))
    assert not wiring.groups
    assert ("layer.weight_hh_l0", 1, "model input") in {(p.tensor, p.axis, p.reason) for p in wiring.pinned}

    wiring = derive(nets.Reader(nn.LSTM, proj_size=2), X)
    assert [group.name for group in wiring.groups] == ["inputs"]
    reasons = {p.reason for p in wiring.pinned if p.tensor == "layer.weight_hr_l0"}
    assert {r.partition(",")[0] for r in reasons} == {"a projected LSTM tells its states apart by their sizes"}
    check(nets.Reader(nn.LSTM, proj_size=2), wiring, X)


def test_weights_that_are_computed_from_the_input_pin_what_they_read():
    class Dynamic(nn.Module):
        def __init__(self):
            super().__init__()
            self.inputs, self.made, self.cell = nn.Linear(4, 6), nn.Linear(4, 6), nn.RNNCell(6, 5)

        def forward(self, x):
            weight = self.cell.weight_ih * self.made(x[0, 0])
            return torch.rnn_tanh_cell(
                self.inputs(x[0]), x.new_zeros(x.shape[1], 5), weight, self.cell.weight_hh, None, None
            )

    wiring = derive(Dynamic(), X)
    assert "two activations are multiplied and summed over it" in {
        p.reason for p in wiring.pinned if (p.tensor, p.axis) == ("inputs.weight", 0)
    }
