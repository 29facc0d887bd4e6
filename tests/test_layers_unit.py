"""Whole residual branches as units: every method meets the target exactly, and the smaller model computes the same."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import setpoint
from setpoint.budget import SeparateCosts, Target, allocate, count_flops
from setpoint.geometry import layer_geometry
from setpoint.optimizer_set import OptimizerSet
from setpoint.recipes.models import build_model
from setpoint.units import Layer, Layout, Member, Part
from setpoint.wiring import BRANCHES, derive
from test_contract import METHODS

from nets import OPTIMIZERS

STEPS = 12
TOKENS = 40


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (-1, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width), nn.Dropout(0.1))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Gpt(nn.Module):
    """A small language model, its embedding tied to its last layer."""

    def __init__(self, width: int = 12, blocks: int = 3) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS, width), nn.Parameter(0.1 * torch.randn(16, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, TOKENS, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def encoder():
    layer = nn.TransformerEncoderLayer(12, 2, 20, batch_first=True)
    return nn.Sequential(nn.Linear(5, 12), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


def hugging_face(model, config, **options):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": TOKENS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    configuration = getattr(transformers, config)(**sizes, intermediate_size=24, max_position_embeddings=8, **options)
    return getattr(transformers, model)(configuration)


def pictures(generator):
    return torch.randn(4, 3, 12, 12, generator=generator)


def tokens(generator):
    return torch.randint(TOKENS, (2, 7), generator=generator)


NETS = {
    "resnet20": (lambda: build_model("resnet20", shape=(3, 12, 12), classes=4, width=0.25), pictures, 7),
    "encoder": (encoder, lambda generator: torch.randn(3, 6, 5, generator=generator), 4),
    "gpt": (Gpt, tokens, 6),
    "bert": (lambda: hugging_face("BertModel", "BertConfig"), tokens, 4),
    "llama": (
        lambda: hugging_face("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2, use_cache=False),
        tokens,
        4,
    ),
}


def build(net, optimizer="sgd"):
    torch.manual_seed(0)
    make, inputs, _ = NETS[net]
    model = make().train()
    return model, OPTIMIZERS[optimizer](model.parameters()), lambda step: inputs(torch.Generator().manual_seed(step))


def train(model, optimizer, batch, steps, start=0):
    for step in range(start, start + steps):
        torch.manual_seed(step)  # of dropout
        optimizer.zero_grad()
        outputs = [t for t in pytree.tree_leaves(model(batch(step))) if isinstance(t, torch.Tensor)]
        sum((t - 1).square().mean() for t in outputs).backward()
        optimizer.step()


def sparsify(net, method, optimizer="sgd", *, steps=STEPS, **asked):
    model, opt, batch = build(net, optimizer)
    asked = {"target": 0.3, **asked}
    sparsifier = setpoint.Sparsifier(
        model, opt, method=method, unit="layer", steps=steps, example_inputs=batch(0), **asked
    )
    return model, opt, batch, sparsifier


def cost(model, counted, x):
    if counted == "params":
        return sum(p.numel() for p in model.parameters())
    if counted == "bytes":
        return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    by_parameter, rest = count_flops(model, x)
    return sum(by_parameter.values()) + rest


def check(model, sparsifier, x, counted, budget):
    """Count in models from which branches are really taken out that the budget holds, and one more would break it."""
    report = sparsifier.report()
    assert report.exact
    small = setpoint.compact(sparsifier, example_inputs=x)
    (kept,) = sparsifier.kept_units().values()
    if counted == "units":
        assert len(kept) == budget
    else:
        assert cost(small, counted, x) == report.budgets[0].kept <= budget
        assert report.budgets[0].total == cost(model, counted, x)
        for more in set(range(len(sparsifier.wiring.branches))) - set(kept.tolist()):
            larger = copy.deepcopy(model)
            sparsifier.wiring.resize(larger, {BRANCHES: torch.tensor([*kept.tolist(), more])})
            assert cost(larger, counted, x) > budget
    gone = [b for i, b in enumerate(sparsifier.wiring.branches) if i not in kept]
    assert report.layers[0].gone == tuple(branch.name for branch in gone)
    for branch in gone:
        assert not any(bool(model.get_parameter(name).any()) for name in branch.parameters)
    return small


CASES = [
    *(("gpt", method, "sgd", {"params": 0.75}) for method in METHODS),
    *(("resnet20", method, "adamw", {"flops": 0.7}) for method in ("wgsef", "l0", "hoyer")),
    ("resnet20", "magnitude", "sgd", {"bytes": 0.8}),
    ("encoder", "gsp", "adamw", {"units": 0.5}),
    ("bert", "l0", "sgd", {"params": 0.7}),
    ("bert", "hoyer", "adamw", {"flops": 0.6}),
    ("llama", "wgsef", "adamw", {"flops": 0.6}),
    ("llama", "gsp", "sgd", {"units": 3}),
]


@pytest.mark.filterwarnings("ignore:.*none of them will move")  # of so few units, methods whose support moves say so
@pytest.mark.parametrize(("net", "method", "optimizer", "amount"), CASES)
def test_targets_are_met_exactly(net, method, optimizer, amount):
    model, opt, batch, sparsifier = sparsify(net, method, optimizer, target=Target(**amount))
    x = batch(0)
    counted, wanted = next(iter(amount.items()))
    if counted == "units":
        budget = wanted if isinstance(wanted, int) else round(wanted * NETS[net][2])
    else:
        budget = wanted * cost(model, counted, x)
    dense = {name: p for name, p in model.named_parameters() if name not in sparsifier.masks}
    train(model, opt, batch, STEPS)
    small = check(model, sparsifier, x, counted, budget)
    assert all(bool(p.any()) for p in dense.values())
    # It trains on, in modules of torch and of the model's own.
    train(small, torch.optim.SGD(small.parameters(), lr=0.01), batch, 2)
    assert not any("setpoint" in type(m).__module__ for m in small.modules() if "recipes" not in type(m).__module__)


def test_operations_are_those_that_torch_counts():
    _, _, batch, sparsifier = sparsify("gpt", "magnitude", target=Target(flops=0.6))
    x = batch(0)
    sparsifier.freeze()
    small = setpoint.compact(sparsifier, x)
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(small).to("meta").eval()(x.to("meta"))
    assert counter.get_total_flops() == sparsifier.report().budgets[0].kept


def test_the_convex_envelope():
    method = setpoint.methods.GroupSparseEnvelope(debias=False, strength=0.1)
    model, opt, batch, sparsifier = sparsify("gpt", method, "adamw", target=Target(units=3))
    train(model, opt, batch, STEPS)
    check(model, sparsifier, batch(0), "units", 3)


def test_the_metric_of_a_branch_is_that_of_its_last_map():
    model, opt, batch, sparsifier = sparsify("gpt", "magnitude", "adamw", target=Target(units=3))
    train(model, opt, batch, 2)
    step, metric = layer_geometry(OptimizerSet([opt]), sparsifier._layers[0])
    assert step == 1e-2
    for i, branch in enumerate(sparsifier.wiring.branches):
        weight = model.get_parameter(branch.last[0])
        second = opt.state[weight]["exp_avg_sq"].mean() / (1 - 0.999**2)
        # A magnitude is the norm by the root of the outputs.
        assert metric[i] == pytest.approx((float(second.sqrt()) + 1e-8) * 12, rel=1e-4)
    sparsifier.remove()
    model, opt, batch, sparsifier = sparsify("gpt", "magnitude", "sgd", target=Target(units=3))
    step, metric = layer_geometry(OptimizerSet([opt]), sparsifier._layers[0])
    assert step == pytest.approx(0.05 / 0.1)
    assert torch.allclose(metric, torch.full((6,), 12.0))


def test_a_factor_scales_what_a_branch_adds_and_leaves_the_rest_of_it_alone():
    model, _, batch, sparsifier = sparsify("gpt", "gsp", target=Target(units=3))
    model.eval()
    layer, x = sparsifier._layers[0], batch(0)
    added = {}

    def remember(name):
        return lambda _, args, answer: added.__setitem__(name, answer.detach().clone())

    model.blocks[0].attention.register_forward_hook(remember("attention"))
    model.blocks[0].mlp.register_forward_hook(remember("mlp"))
    model(x)
    before, weights, m = dict(added), copy.deepcopy(model.state_dict()), layer.magnitudes()
    factors = torch.tensor([0.5, 1, 1, 1, 1, 1])
    layer.multiply(factors)
    model(x)
    assert torch.allclose(added["attention"], 0.5 * before["attention"], atol=1e-6)
    assert torch.allclose(layer.magnitudes(), factors * m)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, weights[name])]
    assert changed == ["blocks.0.attention.out.weight", "blocks.0.attention.out.bias"]
    # Shut, it can open again: its last map still has a gradient.
    layer.multiply(torch.tensor([0.0, 1, 1, 1, 1, 1]))
    assert layer.alive().tolist() == [False, True, True, True, True, True]
    model.train()(x).square().mean().backward()
    assert bool(model.blocks[0].attention.out.weight.grad.any())
    out = model.blocks[1].attention.out
    norm = (out.weight.detach().square().sum() + out.bias.detach().square().sum()).sqrt()
    assert layer.magnitudes()[2] == pytest.approx(float(norm) / 12**0.5)


@pytest.mark.parametrize(("net", "method", "cut"), [("gpt", "magnitude", 5), ("resnet20", "l0", 4)])
def test_resume_is_bit_exact(net, method, cut):
    straight, opt, batch, _ = sparsify(net, method)
    train(straight, opt, batch, cut)
    states = copy.deepcopy((straight.state_dict(), opt.state_dict()))
    train(straight, opt, batch, STEPS - cut, start=cut)
    again, opt, batch, sparsifier = sparsify(net, method)
    again.load_state_dict(states[0])
    opt.load_state_dict(states[1])
    train(again, opt, batch, STEPS - cut, start=cut)
    assert all(torch.equal(a, b) for a, b in zip(straight.state_dict().values(), again.state_dict().values()))
    setpoint.compact(sparsifier, batch(0))


def test_gates_multiply_what_a_branch_adds():
    model, opt, batch, sparsifier = sparsify("resnet20", "l0", target=Target(units=3))
    train(model, opt, batch, 4)
    assert sparsifier.phase == "sparsify"
    gates = sparsifier._gates
    gates.put(0, torch.zeros(7), torch.tensor([0.0, 0.25, 1, 1, 1, 1, 1]))
    x = torch.rand(2, 4, 12, 12)
    model.eval()
    open_ = copy.deepcopy(model)
    shut, quarter = model.layer1[0], model.layer1[1]
    gates.put(0, torch.ones(7), torch.ones(7))
    with torch.no_grad():
        assert torch.equal(open_.layer1[0](x), torch.relu(x))
        assert not torch.equal(shut(x), torch.relu(x))
        y = quarter.bn2(quarter.conv2(torch.relu(quarter.bn1(quarter.conv1(x)))))
        assert torch.allclose(open_.layer1[1](x), torch.relu(x + 0.25 * y), atol=1e-6)


def test_slopes_of_gates_are_derivatives_of_the_loss():
    model, opt, batch, sparsifier = sparsify("gpt", "l0", target=Target(units=3))
    train(model, opt, batch, 4)
    model.eval()
    gates, x = sparsifier._gates, batch(0)
    values = torch.tensor([0.3, 0.5, 0.7, 0.9, 1.0, 0.0])

    def loss(z):
        gates.put(0, z, z)
        return model(x).double().square().mean()

    opt.zero_grad()
    loss(values).backward()
    slopes = gates.slopes(0, OptimizerSet([opt]))
    for i in range(5):
        step = torch.zeros(6).index_fill_(0, torch.tensor([i]), 1e-2)
        with torch.no_grad():
            slope = float((loss(values + step) - loss(values - step)) / 2e-2)
        assert float(slopes[i]) == pytest.approx(slope, rel=2e-2, abs=1e-5)
    assert float(slopes[5]) == 0.0


def test_which_branches_are_meant():
    model, opt, batch, sparsifier = sparsify(
        "gpt", "magnitude", target=Target(units=2), include="blocks.[01].*", exclude="*.mlp.2.bias"
    )
    names = ["blocks.0.attention", "blocks.1.attention"]
    assert [branch.name for branch in sparsifier.wiring.branches] == names
    sparsifier.remove()
    model, opt, batch, sparsifier = sparsify("gpt", "magnitude", target=Target(units=1), include=names)
    train(model, opt, batch, STEPS)
    check(model, sparsifier, batch(0), "units", 1)
    assert "gone: blocks." in str(sparsifier.report())
    assert json.loads(json.dumps(sparsifier.report().to_dict()))["layers"][0]["gone"]


def test_all_may_go_where_the_floor_allows():
    model, _, batch = build("gpt")
    branches = derive(model, batch(0), branches=True).branches
    own = sum(model.get_parameter(name).numel() for branch in branches for name in branch.parameters)
    least = cost(model, "params", None) - own
    model, opt, batch, sparsifier = sparsify("gpt", "l0", target=Target(params=least), floor=0)
    train(model, opt, batch, STEPS)
    small = check(model, sparsifier, batch(0), "params", least)
    assert cost(small, "params", None) == least


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.function = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))

    def forward(self, x):
        return x + self.function(x)


@pytest.mark.parametrize("method", ["GroupedSparseProjection", "GroupSparseEnvelope"])
def test_weights_of_branches(method):
    # As many branches as the last map of each has entries: the weights are the branches' all the same.
    model = nn.Sequential(nn.Linear(4, 3), *(Normed() for _ in range(3)), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    weighing = getattr(setpoint.methods, method)(weights={BRANCHES: torch.tensor([1.0, 100.0, 1.0])})
    sparsifier = setpoint.Sparsifier(
        model,
        optimizer,
        method=weighing,
        target=Target(units=2),
        unit="layer",
        steps=9,
        example_inputs=torch.ones(1, 4),
    )
    assert sparsifier.wiring.branches[0].last == ("1.function.1.weight", "1.function.1.bias")
    sparsifier.freeze()
    assert sparsifier.report().layers[0].gone == ("2",)


def test_sparsity_counts_all_of_a_branch_that_is_shut():
    model, opt, batch, sparsifier = sparsify("gpt", "gsp", target=Target(units=3))
    train(model, opt, batch, 5)
    row = sparsifier.history[-1]
    shut = ~sparsifier._layers[0].alive()
    assert bool(shut.any())
    owned = [sum(model.get_parameter(n).numel() for n in b.parameters) for b in sparsifier.wiring.branches]
    assert row["zeros"] == pytest.approx(sum(n for n, s in zip(owned, shut.tolist()) if s) / sum(owned), abs=1e-6)


def test_norms_by_their_outputs_do_not_empty_the_narrow_layers():
    model, _, _, sparsifier = sparsify("resnet20", "gsp", target=Target(units=3))
    for branch in sparsifier.wiring.branches:
        nn.init.constant_(model.get_parameter(branch.last[0]), 0.5)
        nn.init.constant_(model.get_parameter(branch.last[1]), 0.5)
    m = sparsifier._layers[0].magnitudes()
    assert torch.allclose(m, torch.full((7,), 0.5**0.5))  # whether of 4, 8 or 16 channels


def test_members_of_units():
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    member = Member(Layout((3, 4)), 1, 3)
    assert member.counts == (3,)
    assert torch.allclose(member.magnitudes(weights), torch.tensor([0.0, float(weights.norm()), 0.0]))
    assert torch.allclose(member.sums(weights, weights), torch.tensor([0.0, float(weights.sum()), 0.0]))
    assert torch.equal(member.expand(torch.tensor([1.0, 2.0, 3.0]), weights), torch.full((3, 4), 2.0))
    assert member.sizes().tolist() == [0, 12, 0]
    assert member.magnitudes(weights.half()).dtype == torch.float32


def test_costs_of_each_unit_are_settled_exactly():
    weights = [nn.Parameter(torch.full((1,), float(m))) for m in (3, 2, 1)]
    parts = tuple(Part(f"{i}", p, Member(Layout((1,)), i, 3)) for i, p in enumerate(weights))
    layer = Layer("units", parts)
    whole = SeparateCosts((torch.tensor([50.0, 20.0, 10.0], dtype=torch.float64),), 100.0)
    (budget,) = allocate([layer], Target(params=135), floor=1, whole=whole)
    (kept,) = budget.cut([layer.magnitudes()], 1.0)
    assert kept.tolist() == [False, True, True]
    assert budget.spent([kept]) == 130
    assert budget.next_cost([kept]) == 50
    assert budget.room(0.0) == 80
    # One unit stays, whichever fits; of two the largest must.
    (least,) = allocate([layer], Target(params=110), floor=1, whole=whole)
    assert least.cut([layer.magnitudes()], 1.0)[0].tolist() == [False, False, True]
    with pytest.raises(ValueError, match="109 of the model's 180 params may stay, but at least 110 do"):
        allocate([layer], Target(params=109), floor=1, whole=whole)
    with pytest.raises(ValueError, match="135 of the model's 180 params may stay, but at least 170 do"):
        allocate([layer], Target(params=135), floor=2, whole=whole)
    with pytest.raises(ValueError, match="multiple_of=8 rounds the widths"):
        allocate([layer], Target(params=135, multiple_of=8), whole=whole)
    with pytest.raises(ValueError, match="scope='uniform' divides"):
        allocate([layer], Target(params=135), "uniform", whole=whole)


def test_refusals():
    model, opt, batch = build("resnet20")
    x = batch(0)

    def asked(**options):
        usual = {"model": model, "optimizer": opt, "target": 0.3, "unit": "layer", "steps": STEPS}
        return setpoint.Sparsifier(**{**usual, **options})

    with pytest.raises(ValueError, match="pass example_inputs="):
        asked()
    with pytest.raises(ValueError, match=r"exclude='x\*' matches no branch of unit 'layer'; possible: layer1.0"):
        asked(example_inputs=x, exclude="x*")
    with pytest.raises(ValueError, match="params may stay, but at least"):
        asked(example_inputs=x, target=0.99)
    model.layer1[0].conv1.weight.requires_grad_(False)
    sparsifier = asked(example_inputs=x)
    left = sparsifier.report().left_dense
    assert "is frozen" in left["layer1.0"]
    assert "what it is added to is not its own input" in left["layer2.0"]
    assert len(sparsifier.wiring.branches) == 6
    with pytest.raises(ValueError, match="dense phase"):
        setpoint.compact(sparsifier)
    sparsifier.remove()
    other = torch.optim.SGD(model.layer1.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"'layer2.1' reach into the parameter 'layer2.1.conv1.weight', which is not"):
        asked(optimizer=other, example_inputs=x)
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="there are no units of kind 'layer' to choose from"):
        setpoint.Sparsifier(
            plain,
            torch.optim.SGD(plain.parameters()),
            target=0.3,
            unit="layer",
            steps=9,
            example_inputs=torch.ones(1, 4),
        )
    with pytest.raises(ValueError, match="every layer is a single unit"):
        asked(example_inputs=x, method="gsp", include="layer1.1", target=0.001, floor=0)


@pytest.mark.parametrize("net", ["resnet20", "gpt", "encoder", "llama"])
def test_the_smaller_model_is_made_again_from_its_file(net, tmp_path):
    _, _, batch, sparsifier = sparsify(net, "magnitude", target=Target(units=1))
    x = batch(0)
    sparsifier.freeze()
    small = setpoint.compact(sparsifier, x).eval()
    setpoint.save(small, tmp_path / "small.safetensors")
    again = setpoint.load_model(tmp_path / "small.safetensors", trusted=("test_layers_unit", "transformers"))
    with torch.no_grad():
        pairs = list(zip(pytree.tree_leaves(small(x)), pytree.tree_leaves(again(x)), strict=True))
    assert all(torch.equal(one, other) for one, other in pairs if isinstance(one, torch.Tensor))
    assert str(again) == str(small)
    setpoint.save(again, tmp_path / "again.safetensors")
    train(again.train(), torch.optim.SGD(again.parameters(), lr=0.01), batch, 1)


def test_a_model_in_another_precision():
    model, _, batch = build("gpt")
    model = model.to(torch.bfloat16)
    opt = OPTIMIZERS["adamw"](model.parameters())
    x = batch(0)
    sparsifier = setpoint.Sparsifier(
        model, opt, method="wgsef", target=Target(units=3), unit="layer", steps=STEPS, example_inputs=x
    )
    assert len(sparsifier.wiring.branches) == 6
    train(model, opt, batch, STEPS)
    small = setpoint.compact(sparsifier, x)
    assert all(p.dtype == torch.bfloat16 for p in small.parameters())
