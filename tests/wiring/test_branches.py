"""Residual branches: which there are, why others are none, and that taking them out changes nothing but the cost."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from test_hugging_face import CASES
from test_hugging_face import build as build_hugging_face
from torch import nn
from torch.utils import _pytree as pytree
from wiring_cnns import inverted_residuals
from wiring_residuals import NETS
from wiring_transformers import Decoder, GroupedDecoder

from setpoint.budget import count_flops
from setpoint.recipes.models.bottleneck import BottleneckResNet
from setpoint.wiring import BRANCHES, derive, explain, without
from setpoint.wiring.stand_ins import TOLD, revive

IMAGES, TOKENS = torch.zeros(2, 3, 16, 16), torch.randint(30, (2, 7), generator=torch.Generator().manual_seed(0))
LAYERS = range(2)
# Models, inputs and the branches they have.
MODELS = {
    "bottlenecks": (lambda: BottleneckResNet((3, 16, 16), 5, (2, 2), 0.125), IMAGES, ["layers.0.1", "layers.1.1"]),
    "inverted residuals": (inverted_residuals, IMAGES, ["2"]),
    "decoder": (Decoder, TOKENS, [f"blocks.{i}.{name}" for i in LAYERS for name in ("attention", "mlp")]),
    "grouped decoder": (lambda: GroupedDecoder("expand"), TOKENS, ["attention", "mlp"]),
}
HUGGING_FACE = {
    "BertModel": ["encoder.layer.{}.attention.self", "encoder.layer.{}.intermediate"],
    "GPT2LMHeadModel": ["transformer.h.{}.attn", "transformer.h.{}.mlp"],
    "LlamaForCausalLM": ["model.layers.{}.self_attn", "model.layers.{}.mlp"],
    "ViTForImageClassification": ["vit.layers.{}.attention", "vit.layers.{}.mlp"],
}


def answer(model, x):
    torch.manual_seed(0)
    with torch.no_grad():
        found = pytree.tree_leaves(model.eval()(x))
    return [t for t in found if isinstance(t, torch.Tensor)]


def random(x):
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) if x.is_floating_point() else x


def masked(model, branches):
    """The model with the branches' parameters at zero."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for branch in branches:
            for name in branch.parameters:
                copied.get_parameter(name).zero_()
    return copied


def size(model):
    return sum(p.numel() for p in model.parameters())


def check(model, x, names):
    """Take branches out, each alone and all at once, and compare with the masked model, independently of the trial."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)  # no scale is too small to show
    wiring = derive(model.train(), x, branches=True)
    assert [branch.name for branch in wiring.branches] == names
    x = random(x)
    everything = list(range(len(names)))
    for kept in [*([i for i in everything if i != gone] for gone in everything), []]:
        small = copy.deepcopy(model)
        wiring.resize(small, {BRANCHES: torch.tensor(kept, dtype=torch.long)})
        gone = [branch for i, branch in enumerate(wiring.branches) if i not in kept]
        for mine, theirs in zip(answer(small, x), answer(masked(model, gone), x), strict=True):
            assert torch.allclose(mine, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()))
        assert size(small) < size(model)
        kinds = {type(module).__module__ for module in small.modules()} - {type(m).__module__ for m in model.modules()}
        assert kinds <= {"torch.nn.modules.module", "torch.nn.modules.linear"}  # stand-ins are of torch alone
        assert small.state_dict().keys() <= model.state_dict().keys()
        again = pickle.loads(pickle.dumps(copy.deepcopy(small)))
        assert all(torch.equal(a, b) for a, b in zip(answer(again, x), answer(small, x), strict=True))
    return wiring


@pytest.mark.parametrize("name", NETS)
def test_ways_of_writing_a_residual(name):
    make, x, names, refused = NETS[name]
    torch.manual_seed(0)
    model = make()
    wiring = check(model, x, names) if names else derive(model, x, branches=True)
    assert [branch.name for branch in wiring.branches] == names
    assert wiring.refused.keys() == refused.keys()
    assert all(words in wiring.refused[place] for place, words in refused.items())


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    make, x, names = MODELS[name]
    torch.manual_seed(0)
    check(make(), x, names)


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_models_of_the_transformers_library(name):
    model, x = build_hugging_face(name)
    check(model, x, [pattern.format(i) for i in LAYERS for pattern in HUGGING_FACE[name]])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["residual", "scaled", "pre-norm", "casting"])
def test_the_mode_does_not_matter(name, training):
    make, x, names, _ = NETS[name]
    model = make().train(training)
    before = copy.deepcopy(model.state_dict())
    randomness = torch.get_rng_state()
    assert [branch.name for branch in derive(model, x, branches=True).branches] == names
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert torch.equal(randomness, torch.get_rng_state())


@pytest.mark.parametrize(
    "name", ["residual", "parallel, one norm", "stacked", "in place", "pre-norm", "several", "around"]
)
def test_what_is_left_trains_compiles_and_exports(name):
    make, x, _, _ = NETS[name]
    torch.manual_seed(0)
    model, x = make(), random(x)
    wiring = derive(model, x, branches=True)
    wiring.resize(model, {BRANCHES: torch.arange(1, len(wiring.branches))})
    model.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    compiled = torch.compile(model.eval(), fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.allclose(compiled(x), model(x), atol=1e-6)
        assert torch.allclose(torch.export.export(model, (x,)).module()(x), model(x), atol=1e-6)
    model(torch.cat([x, x]))  # no size of the example was burnt in


def test_the_last_map_alone_silences_a_branch():
    for name in ("residual", "scaled", "pre-norm", "several", "recurrent", "in place"):
        make, x, _, _ = NETS[name]
        torch.manual_seed(0)
        model, x = make(), random(x)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        for branch in derive(model, x, branches=True).branches:
            silent = copy.deepcopy(model)
            with torch.no_grad():
                for parameter in branch.last:
                    silent.get_parameter(parameter).zero_()
            assert len(branch.last) < len(branch.parameters) or len(branch.parameters) == 2
            for mine, theirs in zip(answer(silent, x), answer(masked(model, [branch]), x)):
                assert torch.allclose(mine, theirs, atol=1e-6)


def test_the_last_map_scales_a_branch():
    make, x, _, _ = NETS["around"]
    torch.manual_seed(0)
    model, x = make(), random(x)
    (branch,) = derive(model, x, branches=True).branches
    dense, none = answer(model, x)[0], answer(masked(model, [branch]), x)[0]
    with torch.no_grad():
        for parameter in branch.last:
            model.get_parameter(parameter).mul_(0.25)
    assert torch.allclose(answer(model, x)[0], none + 0.25 * (dense - none), atol=1e-6)


def test_stand_ins_cost_no_arithmetic():
    for name in ("bottlenecks", "inverted residuals", "decoder"):
        make, x, _ = MODELS[name]
        model = make()
        wiring = derive(model, x, branches=True)
        by_parameter, between = count_flops(model, x)
        with without(model, wiring.branches):
            left, rest = count_flops(model, x)
        own = {parameter for branch in wiring.branches for parameter in branch.parameters}
        assert left == {parameter: flops for parameter, flops in by_parameter.items() if parameter not in own}
        assert rest == 0
        assert (between > 0) == (name == "decoder"), "what attention does between activations goes as well"
        assert count_flops(model, x) == (by_parameter, between)  # all is back in its place


def test_which_branches_stay():
    make, x, names, _ = NETS["residual"]
    wiring = derive(make(), x, branches=True)
    for wrong in (torch.tensor([0, 0]), torch.tensor([2]), torch.tensor([[0]])):
        with pytest.raises(ValueError, match="branches 0 to 1, each at most once"):
            wiring.resize(make(), {BRANCHES: wrong})
    assert derive(make(), x).branches == ()
    text = explain(make(), x)
    assert "2 residual branches may go whole" in text
    assert all(name in text for name in names)
    refusing, x, _, _ = NETS["leaking"]
    assert "a value inside of it (of 'up') is used elsewhere" in explain(refusing(), x)


def test_what_is_read_from_a_file_comes_into_no_code():
    module = nn.Module()
    revive(module)
    assert "forward" not in vars(module)
    zeros = SimpleNamespace(sizes=None, dtype=None)
    for source, answer in (
        ("x'] or exit() or ['", zeros),
        (0, {"a: exit()": zeros}),
        (0, (zeros, "exit()")),
        (0, (zeros, 1.5)),
        (0, (SimpleNamespace(sizes=None, dtype="exit()"), None)),
    ):
        told = SimpleNamespace(source=source, answer=answer, alone=False, module="Linear")
        vars(module)[TOLD] = told
        with pytest.raises(ValueError, match=r"a stand-in answers with|is no dtype"):
            revive(module)
    vars(module)[TOLD] = SimpleNamespace(source="x", answer={"y": [zeros, None, 3]}, alone=False, module="Linear")
    revive(module)
    assert torch.equal(module(x=torch.ones(2))["y"][0], torch.zeros(2))
    assert str(module) == "Module(zeros in place of Linear)"


def test_groups_and_branches_at_once():
    make, x, _, _ = NETS["residual"]
    torch.manual_seed(0)
    model = make()
    wiring = derive(model, x, branches=True)
    wiring.resize(model, {"blocks.0.function.1": torch.arange(3), BRANCHES: torch.tensor([0])})
    assert model.blocks[0].function[1].weight.shape == (3, 12)
    assert not list(model.blocks[1].parameters())
    model(x)


def test_every_case_of_the_library_is_known():
    assert HUGGING_FACE.keys() <= CASES.keys()
