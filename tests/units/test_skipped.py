"""What a run leaves dense: every weight that is not in it is named, with a reason and its size."""

import pytest
import torch
from standard_layers import Experts
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.weight_norm import WeightNorm

import setpoint
from setpoint.units import select, skipped_in_words
from setpoint.units.choose import choose

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")


def selected(model, unit="weight", **options):
    return choose(model, torch.optim.SGD(model.parameters(), lr=0.1), unit, **options)[0]


def assert_all_are_named(model, selection):
    """Every parameter of two or more axes is in the run or in the list, and in one of them only."""
    matrices = {name: p for name, p in model.named_parameters() if p.ndim >= 2}
    taken = {part.name for layer in selection.layers for part in layer.parts}
    assert taken & matrices.keys() | selection.left.keys() >= matrices.keys()
    assert not taken & selection.left.keys()
    sizes = {skipped.name: skipped.params for skipped in selection.skipped if skipped.params}
    assert sizes == {name: p.numel() for name, p in matrices.items() if name not in taken}
    assert selection.model_params == sum(p.numel() for p in model.parameters())


class Standardised(nn.Module):
    def forward(self, weight):
        return (weight - weight.mean()) / weight.std()


class Owned(nn.Module):
    """A custom module with a weight of its own, and parameters that are no weights of products."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.pair_bias = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.zeros(8, 2))
        self.norm, self.table = nn.LayerNorm((2, 4)), nn.Embedding(5, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.codes = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(nn.functional.linear(x, self.weight))


# What a parametrization, a norm or a mask computes a weight from, and how to undo it.
COMPUTED = {
    "weight_norm": (parametrizations.weight_norm, "parametrize.remove_parametrizations(module, 'weight')", 2),
    "spectral_norm": (parametrizations.spectral_norm, "parametrize.remove_parametrizations(module, 'weight')", 1),
    "orthogonal": (parametrizations.orthogonal, "parametrize.remove_parametrizations(module, 'weight')", 1),
    "custom": (
        lambda layer: parametrize.register_parametrization(layer, "weight", Standardised()),
        "parametrize.remove_parametrizations(module, 'weight')",
        1,
    ),
    "old weight_norm": (nn.utils.weight_norm, "torch.nn.utils.remove_weight_norm(module, 'weight')", 2),
    "old spectral_norm": (nn.utils.spectral_norm, "torch.nn.utils.remove_spectral_norm(module, 'weight')", 1),
    "mask": (lambda layer: prune.l1_unstructured(layer, "weight", 3), "prune.remove(module, 'weight')", 1),
    "masks": (
        lambda layer: prune.random_unstructured(prune.l1_unstructured(layer, "weight", 3), "weight", 2),
        "prune.remove(module, 'weight')",
        1,
    ),
}


def undo(kind, layer):
    """As the message says."""
    if "mask" in kind:
        prune.remove(layer, "weight")
    elif kind.startswith("old"):
        getattr(nn.utils, f"remove_{kind[4:]}")(layer, "weight")
    else:
        parametrize.remove_parametrizations(layer, "weight")


@pytest.mark.parametrize("kind", COMPUTED)
def test_what_a_weight_is_computed_from_is_left_with_the_way_out(kind):
    apply, way_out, count = COMPUTED[kind]
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    apply(model[0])
    for include in (None, "*"):
        selection = selected(model, include=include)
        assert [layer.name for layer in selection.layers] == ["2.weight"]
        assert len(selection.left) == count
        assert all(way_out in reason for reason in selection.left.values())
        assert_all_are_named(model, selection)
    for name in ("0.weight", *selection.left):
        with pytest.raises(ValueError, match="was asked for by name, but a parametrization, norm or mask computes"):
            selected(model, include=name)
    assert selected(model, exclude="0.weight").left.keys() == selection.left.keys()
    alone = nn.Linear(6, 6)
    apply(alone)
    for asked in ({}, {"include": "weight"}):
        with pytest.raises(ValueError, match="a parametrization, norm or mask computes the weight from it"):
            selected(alone, **asked)
    undo(kind, model[0])
    assert [layer.name for layer in selected(model).layers] == ["0.weight", "2.weight"]
    assert not any(isinstance(hook, WeightNorm) for hook in model[0]._forward_pre_hooks.values())


def test_what_a_parametrization_holds_is_left_with_it():
    class LowRank(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(2, 6, bias=False), nn.Linear(6, 2, bias=False)

        def forward(self, weight):
            return weight + self.up.weight @ self.down.weight

    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    parametrize.register_parametrization(model[0], "weight", LowRank())
    selection = selected(model, include="*")
    assert [layer.name for layer in selection.layers] == ["1.weight"]
    assert len(selection.left) == 3
    assert_all_are_named(model, selection)


def test_every_parameter_of_two_axes_is_named():
    model = Owned()
    selection = selected(model)
    assert [layer.name for layer in selection.layers] == ["head.weight"]
    assert_all_are_named(model, selection)
    left = selection.left
    assert "no weight of a standard layer" in left["weight"]
    assert (left["pair_bias"], left["norm.weight"]) == ("it is a bias", "it scales a norm")
    assert left["table.weight"] == "it is an embedding"
    assert "frozen" in left["frozen.weight"]
    assert "torch.int8" in left["codes"]
    with pytest.raises(ValueError, match=r"'codes' was asked for by name, but its entries .* torch\.int8"):
        selected(model, include="codes")


def test_a_star_takes_every_trainable_matrix():
    model = Owned()
    selection = selected(model, include="*")
    taken = {layer.name for layer in selection.layers}
    assert taken == {"weight", "pair_bias", "norm.weight", "norm.bias", "table.weight", "head.weight"}
    assert selection.left.keys() == {"frozen.weight", "codes"}
    assert_all_are_named(model, selection)
    some = selected(model, include=["*weight", "head.bias"], exclude="norm.*")
    assert {layer.name for layer in some.layers} == {"weight", "table.weight", "head.weight", "head.bias"}
    assert some.left["norm.weight"] == "exclude= leaves it out"
    assert some.left["pair_bias"] == "it is a bias"
    assert selected(model, include="weight").left["head.weight"] == "include= does not name it"


def test_globs_that_fit_vectors_only_say_how_to_name_them():
    model = Owned()
    with pytest.raises(ValueError, match=r"include='head.b\*' matches no parameter of two or more axes \(name other"):
        selected(model, include="head.b*")
    with pytest.raises(ValueError, match=r"include='nothing\*' matches nothing; possible: weight, pair_bias"):
        selected(model, include="nothing*")


def test_names_are_told_apart_by_identity():
    """Tensors compare by value: membership in a list of them is no question to ask."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 4))
    with pytest.raises(ValueError, match=r"'1.bias' was asked for by name, but its shape \(4,\) has no units"):
        selected(model, "row", include=["0.weight", "1.bias"])
    nn.init.ones_(model[0].bias)
    model[0].weight.data.fill_(1.0)
    both = selected(model, include=["0.weight", "0.bias", "1.bias"])
    assert [layer.name for layer in both.layers] == ["0.weight", "0.bias", "1.bias"]


def test_shared_parameters_count_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Embedding(4, 4))
    model[1].weight = model[0].weight
    selection = selected(model)
    assert [layer.name for layer in selection.layers] == ["0.weight"]
    assert selection.model_params == 16 + 8 + 16
    assert_all_are_named(model, selection)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.norm, self.head = nn.GroupNorm(1, 8), nn.Linear(8, 4)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        x = self.norm(self.second(torch.relu(self.first(x))))
        return self.head(x.mean((2, 3)))


def test_what_units_across_layers_reach_into_is_not_called_dense():
    model = Normed()
    selection = selected(model, "channel", example_inputs=torch.randn(2, 3, 8, 8))
    assert [layer.name for layer in selection.layers] == ["first"]
    assert selection.left.keys() == {"head.weight", "unused.weight"}  # the second convolution loses inputs
    assert "pinned" in selection.left["head.weight"]
    assert "no operator reads it" in selection.left["unused.weight"]
    assert_all_are_named(model, selection)


def test_groups_that_are_not_taken_are_named_with_their_weights():
    model = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(6, 6), nn.ReLU())), nn.Linear(6, 2))
    x = torch.randn(2, 6)
    kept_out = selected(model, "neuron", exclude="0", example_inputs=x)
    assert kept_out.left == {"0": "exclude= leaves it out", "0.weight": "exclude= leaves it out"}
    assert_all_are_named(model, kept_out)
    model[0].weight.requires_grad_(False)
    frozen = selected(model, "neuron", example_inputs=x)
    assert "reach into '0.weight', which is frozen" in frozen.left["0"]
    assert frozen.left["0.weight"] == "it is frozen (requires_grad is False)"
    assert_all_are_named(model, frozen)
    mixed = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 2))
    found = selected(mixed, "neuron", example_inputs=torch.randn(1, 3, 4, 4))
    assert found.left == {"0.weight": "its units are of kind 'channel', not 'neuron'"}
    assert_all_are_named(mixed, found)


def test_weights_outside_of_branches_are_named():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.branch, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            x = self.stem(x)
            return self.head(x + self.branch(x))

    model = Residual()
    selection = selected(model, "layer", example_inputs=torch.randn(2, 4))
    assert selection.left.keys() >= {"stem.weight", "head.weight"}
    assert all("branch" in selection.left[name] for name in ("stem.weight", "head.weight"))
    assert_all_are_named(model, selection)


def test_layers_that_no_glob_of_the_scope_names_are_left():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    selection = selected(model)
    some = selection.only(selection.layers[:1], "no glob of the scope names it")
    assert some.left == {"1.weight": "no glob of the scope names it"}
    assert_all_are_named(model, some)


def test_a_report_groups_what_is_left_by_reason():
    names = [f"layers.{i}.weight" for i in range(12)]
    reasons = {**dict.fromkeys(names, "it is frozen"), "table": "it is an embedding", "block": "it branches"}
    params = {**dict.fromkeys(names, 10), "table": 1000}
    assert list(skipped_in_words(reasons, params, 4000)) == [
        "left dense: 1 parameter, 25 % of the model: it is an embedding: table",
        "left dense: 12 parameters, 3 % of the model: it is frozen: "
        "layers.0.weight, layers.1.weight, layers.2.weight and 9 more",
        "left dense: it branches: block",
    ]
    assert list(skipped_in_words({}, {}, 10)) == []


def test_a_report_says_what_part_of_the_model_it_is_about():
    model = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 5))
    run = setpoint.Sparsifier(model, torch.optim.SGD(model.parameters(), lr=0.1), target=0.5, steps=9)
    report = run.report()
    assert report.coverage == pytest.approx(30 / 95)
    assert (report.left_params, report.model_params) == ({"0.weight": 60}, 95)
    assert "covers 30 / 95 of the model's parameters (31.6%)" in str(report)
    assert "left dense: 1 parameter, 63 % of the model: it is an embedding: 0.weight" in str(report)
    assert report.to_dict()["left_params"] == {"0.weight": 60}


def test_experts_without_a_count_of_them_are_a_custom_weight():
    model = Experts(False)
    del model.num_experts
    with pytest.raises(ValueError, match=r"up, down: it is no weight of a standard layer"):
        selected(model)
    assert [layer.name for layer in select(model, torch.optim.SGD(model.parameters()), "weight", "*").layers] == [
        "up",
        "down",
    ]
