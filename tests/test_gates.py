"""Gates on a model: what they learn from, and that they come and go without a trace."""

import copy
import gc
import itertools

import pytest
import torch
import torch._dynamo.testing
from torch import nn

import setpoint
from setpoint.gates import Gates
from setpoint.optimizer_set import OptimizerSet
from setpoint.units import Layer, Layout, Part, partition, select

from nets import build, mlp, train

STEPS = 20


def gated(model, unit, include=None, seed=0):
    """(gates, layers, a random gate in (0, 1) for each unit)."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    layers = select(model, optimizer, unit, include, None).layers
    gates = Gates(model, layers)
    gates.attach()
    generator = torch.Generator().manual_seed(seed)
    values = [0.1 + 0.8 * torch.rand(layer.partition.counts, generator=generator) for layer in layers]
    for i, z in enumerate(values):
        gates.put(i, z, torch.ones_like(z))
    return gates, optimizer, values


def tiles(rows, columns, height, width):
    i, j = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return (i // height) * -(-columns // width) + j // width


def two_of_four(weight):
    """The unit of each entry of a matrix; -1 for the two largest of four, which belong to none."""
    unit = tiles(*weight.shape, 1, 4)
    for row, start in itertools.product(range(weight.shape[0]), range(0, weight.shape[1], 4)):
        largest = weight[row, start : start + 4].abs().topk(2).indices
        unit[row, start + largest] = -1
    return unit


def in_shape(units, weight):
    return units.reshape(units.shape + (1,) * (weight.ndim - units.ndim)).expand(weight.shape)


LINEAR = (lambda: nn.Linear(10, 6), (5, 10))
CONV = (lambda: nn.Conv2d(4, 6, 3), (2, 4, 5, 5))
GROUPED = (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5))
TRANSPOSED = (lambda: nn.ConvTranspose2d(4, 6, 2, groups=2), (2, 4, 3, 3))
OF_TWO = torch.tensor([[0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]])  # outputs by (input, output of the group)
# By name: the module, its input, the unit, and the unit of each entry of its weight, written out.
CASES = {
    "linear-weight": (*LINEAR, "weight", lambda w: torch.arange(60).reshape(6, 10)),
    "linear-row": (*LINEAR, "row", lambda w: in_shape(torch.arange(6), w)),
    "linear-column": (*LINEAR, "column", lambda w: torch.arange(10).expand(6, 10)),
    "linear-block": (*LINEAR, (4, 3), lambda w: tiles(6, 10, 4, 3)),
    "linear-2:4": (*LINEAR, "2:4", two_of_four),
    "conv-weight": (*CONV, "weight", lambda w: torch.arange(w.numel()).reshape(w.shape)),
    "conv-filter": (*CONV, "filter", lambda w: in_shape(torch.arange(6), w)),
    "conv-kernel": (*CONV, "kernel", lambda w: in_shape(torch.arange(24).reshape(6, 4), w)),
    "conv-block": (*CONV, (2, 5), lambda w: tiles(6, 36, 2, 5).reshape(w.shape)),
    "grouped-filter": (*GROUPED, "filter", lambda w: in_shape(torch.arange(6), w)),
    "grouped-kernel": (*GROUPED, "kernel", lambda w: in_shape(torch.arange(12).reshape(6, 2), w)),
    "transposed-filter": (*TRANSPOSED, "filter", lambda w: in_shape(OF_TWO, w)),
    "transposed-kernel": (
        *TRANSPOSED,
        "kernel",
        lambda w: in_shape(2 * OF_TWO + torch.tensor([[0], [1], [0], [1]]), w),
    ),
}


def loss_of(model, inputs):
    outputs = model(inputs)
    return (outputs * torch.linspace(-1, 1, outputs.numel()).reshape(outputs.shape)).sum() + outputs.square().mean()


@pytest.mark.parametrize("case", CASES)
def test_slopes_are_the_losss_derivative_by_the_gates(case):
    factory, shape, unit, units_of = CASES[case]
    torch.manual_seed(0)
    model, inputs = nn.Sequential(factory()), torch.randn(shape)
    gates, optimizer, (z,) = gated(model, unit)
    loss_of(model, inputs).backward()

    plain = dict(model.named_parameters())
    weight = gates._layers[0].parts[0].parameter.detach()
    by_hand = z.flatten().clone().requires_grad_()
    units = units_of(weight)
    factors = torch.where(units < 0, 1.0, by_hand[units])
    twin = nn.Sequential(factory())
    bias = plain["0.bias"].detach()
    loss = loss_of(
        lambda x: torch.func.functional_call(twin, {"0.weight": weight * factors, "0.bias": bias}, x), inputs
    )
    (want,) = torch.autograd.grad(loss, by_hand)
    assert torch.allclose(gates.slopes(0, OptimizerSet([optimizer])), want, rtol=1e-4, atol=1e-5)
    assert float(want.abs().max()) > 0.1


def test_slopes_behind_a_norm_are_the_losss_derivative_by_what_multiplies_its_output():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with torch.no_grad():
        model[1].bias.normal_()
    inputs, optimizer = torch.randn(4, 3, 6, 6), torch.optim.SGD(model.parameters(), lr=0.1)
    gates = Gates(model, select(model, optimizer, "filter", None, None).layers)
    model(inputs)
    gates.attach()
    assert gates.norms == {"0.weight": "1"}
    z = torch.tensor([0.2, 0.4, 0.9, 0.5])
    gates.put(0, z, torch.ones(4))
    loss_of(model, inputs).backward()
    found = gates.slopes(0, OptimizerSet([optimizer]))
    gates.detach()
    by_hand = z.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss_of(lambda x: model(x) * by_hand[:, None, None], inputs), by_hand)
    assert torch.allclose(found, want, rtol=1e-4, atol=1e-5)


def test_gates_that_are_shut_have_no_slope_and_missing_gradients_are_none():
    torch.manual_seed(0)
    model = mlp()
    gates, optimizer, (z, *_) = gated(model, "row")
    assert bool((gates.slopes(0, OptimizerSet([optimizer])) == 0).all())
    gates.put(0, torch.where(torch.arange(18) < 9, 0.0, z.flatten()), z)
    loss_of(model, torch.randn(4, 20)).backward()
    slopes = gates.slopes(0, OptimizerSet([optimizer]))
    assert bool((slopes[:9] == 0).all())
    assert bool((slopes[9:] != 0).any())
    assert bool(torch.isfinite(slopes).all())


def test_training_feels_the_samples_and_evaluation_the_tests_gates():
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(5, 3, bias=False)), torch.randn(4, 5)
    gates, optimizer, (z,) = gated(model, "row")
    test = torch.tensor([0.0, 0.5, 1.0])
    gates.put(0, z, test)
    plain = inputs @ gates._layers[0].parts[0].parameter.detach().T
    assert torch.allclose(model(inputs), plain * z.flatten(), atol=1e-6)
    assert gates.open(0).tolist() == [False, True, True]
    model.eval()
    assert torch.allclose(model(inputs), plain * test, atol=1e-6)
    # Whoever trains in evaluation mode learns about the gates that were in the forward pass.
    loss_of(model, inputs).backward()
    assert torch.equal(gates.samples(0), test)
    by_hand = test.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss_of(lambda x: plain * by_hand, inputs), by_hand)
    assert torch.allclose(gates.slopes(0, OptimizerSet([optimizer]))[1:], want[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("net", "unit"), [("mlp", "weight"), ("convnet", "filter"), ("convnet", "kernel")])
def test_they_leave_the_same_parameters_modules_names_and_order(net, unit):
    model, opt, batch = build(net)
    parameters = {name: (id(p), type(p)) for name, p in model.named_parameters()}
    names, keys = list(parameters), list(model.state_dict())
    classes = [type(m) for m in model.modules()]
    hooks = [len(m._state_dict_hooks) + len(m._load_state_dict_pre_hooks) for m in model.modules()]
    schedule = setpoint.Schedule(begin=4, end=10)
    sparsifier = setpoint.Sparsifier(model, opt, method="l0", target=0.5, unit=unit, steps=STEPS, schedule=schedule)
    train(model, opt, batch, 6)
    assert any(type(m).__name__.startswith("Gated") for m in model.modules())
    assert [id(p) for g in opt.param_groups for p in g["params"]] == [i for i, _ in parameters.values()]
    train(model, opt, batch, 6, start=6)
    assert sparsifier.phase == "frozen"
    assert {name: (id(p), type(p)) for name, p in model.named_parameters()} == parameters
    assert [n for n, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == keys
    assert [type(m) for m in model.modules()] == classes
    assert [len(m._state_dict_hooks) + len(m._load_state_dict_pre_hooks) for m in model.modules()] == hooks
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(("net", "unit"), [("mlp", "weight"), ("convnet", "filter")])
def test_state_dicts_have_plain_names_in_both_directions(net, unit):
    plain, _, _ = build(net, seed=1)
    model, opt, batch = build(net)
    setpoint.Sparsifier(model, opt, method="l0", target=0.5, unit=unit, steps=STEPS)
    train(model, opt, batch, 5)
    state = model.state_dict()
    assert set(state) == set(plain.state_dict())
    assert state["fc.weight" if net == "convnet" else "0.weight"].data_ptr() in {
        p.data_ptr() for p in opt.param_groups[0]["params"]
    }
    before = {k: v.clone() for k, v in state.items()}
    plain.load_state_dict(state)
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in before.items())
    other, _, _ = build(net, seed=2)
    model.load_state_dict(other.state_dict())
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({k: v for k, v in state.items() if not k.endswith("fc.weight") and k != "0.weight"})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({**state, "0.more" if net == "mlp" else "fc.more": torch.ones(1)})


@pytest.mark.parametrize("steps", [1, 5])
def test_copies_of_a_model_have_no_part_in_its_run(steps):
    model, opt, batch = build("convnet")
    sparsifier = setpoint.Sparsifier(
        model, opt, method="l0", target=0.5, unit="filter", steps=STEPS, schedule=setpoint.Schedule(begin=3, end=10)
    )
    train(model, opt, batch, steps)
    twin, inputs = copy.deepcopy(model), batch(0)[0]
    assert set(twin.state_dict()) == set(model.state_dict())
    assert torch.equal(twin.eval()(inputs), model.eval()(inputs))
    twin.train()(inputs)
    model.train()
    before = {k: v.clone() for k, v in twin.state_dict().items()}
    train(model, opt, batch, STEPS - steps, start=steps)
    assert sparsifier.report().exact
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in before.items())
    straight, opt, batch = build("convnet")
    setpoint.Sparsifier(
        straight, opt, method="l0", target=0.5, unit="filter", steps=STEPS, schedule=setpoint.Schedule(begin=3, end=10)
    )
    train(straight, opt, batch, STEPS)
    assert all(torch.equal(v, straight.state_dict()[k]) for k, v in model.state_dict().items()), "a copy was watched"


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Linear(8, 8), nn.Linear(8, 8)
        self.again.weight = self.first.weight


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 8), nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("factory", "include", "words"),
    [
        (Tied, None, ["'first.weight'", "shared by 2 modules (Linear, Linear)", "exclude="]),
        (Recurrent, "lstm.weight_hh_l0", ["'lstm.weight_hh_l0'", "LSTM", "exclude="]),
    ],
)
def test_parameters_that_cannot_be_gated_are_refused_by_name(factory, include, words):
    model = factory()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError) as caught:
        setpoint.Sparsifier(model, opt, method="l0", target=0.5, steps=STEPS, include=include)
    assert all(word in str(caught.value) for word in words)
    assert not opt._optimizer_step_post_hooks
    setpoint.Sparsifier(model, opt, target=0.5, steps=STEPS, include=include)


def test_a_refusal_leaves_no_hook_on_the_model():
    model, opt, _ = build("convnet")
    with pytest.raises(ValueError, match="nonfinite"):
        setpoint.Sparsifier(model, opt, method="l0", target=0.5, unit="filter", steps=STEPS, nonfinite="ignore")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_run_that_is_forgotten_takes_its_gates_along_and_none_but_its_own():
    model, opt, batch = build("convnet")
    schedule = setpoint.Schedule(begin=2, end=10)
    sparsifier = setpoint.Sparsifier(model, opt, method="l0", target=0.5, unit="filter", steps=STEPS, schedule=schedule)
    train(model, opt, batch, 5)
    assert type(model.norm) is not nn.BatchNorm2d
    del sparsifier, opt
    gc.collect()
    assert [type(m) for m in model.modules()] == [type(m) for m in build("convnet")[0].modules()]
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    first = setpoint.Sparsifier(model, opt, method="l0", target=0.5, unit="filter", steps=STEPS, schedule=schedule)
    train(model, opt, batch, 5)
    first.remove()
    second = setpoint.Sparsifier(model, opt, method="l0", target=0.5, unit="filter", steps=STEPS, schedule=schedule)
    train(model, opt, batch, 5)
    del first
    gc.collect()
    assert type(model.norm) is not nn.BatchNorm2d
    train(model, opt, batch, STEPS)
    assert second.report().exact


def test_gates_that_were_replaced_take_none_but_their_own_away():
    model = mlp()
    first, _, _ = gated(model, "row")
    second, _, _ = gated(model, "row")
    first.detach()
    assert not first.attached
    assert type(model[0]) is not nn.Linear
    second.detach()
    assert type(model[0]) is nn.Linear


def test_parameters_that_data_parallel_wrappers_watch_stay_watched():
    """Their hooks are on the nodes of the graph where gradients arrive, which a parameter set anew would lose."""
    model, opt, batch = build("convnet")
    arrivals = {n: torch.autograd.graph.get_gradient_edge(p).node for n, p in model.named_parameters()}
    setpoint.Sparsifier(
        model, opt, method="l0", target=0.5, unit="filter", steps=STEPS, schedule=setpoint.Schedule(begin=2, end=10)
    )
    for step in range(12):
        train(model, opt, batch, 1, start=step)
        found = {n: torch.autograd.graph.get_gradient_edge(p).node for n, p in model.named_parameters()}
        assert found == arrivals, step


def test_averages_of_the_weights_go_on_while_gates_are_on():
    model, opt, batch = build("convnet")
    average = torch.optim.swa_utils.AveragedModel(model)
    setpoint.Sparsifier(
        model, opt, method="l0", target=0.5, unit="kernel", steps=STEPS, schedule=setpoint.Schedule(begin=2, end=10)
    )
    for step in range(4):
        train(model, opt, batch, 1, start=step)
        average.update_parameters(model)
    assert all(a.shape == b.shape for a, b in zip(average.module.parameters(), model.parameters()))
    assert [n for n, _ in average.module.named_parameters()] == [n for n, _ in model.named_parameters()]


def lessons(way):
    """What the gates of a network learn from one batch of 16 that is handed over in some way, and its weights after."""
    torch.manual_seed(0)
    model, _, batch = build("mlp")
    opt = (
        torch.optim.SGD(model.parameters(), lr=0.05)
        if way != "fused"
        else torch.optim.Adam(model.parameters(), lr=0.05, fused=True)
    )
    seen = []

    class Spy(setpoint.methods.ConstrainedL0):
        def gates(self, units, felt):
            if felt is not None:
                seen.append(torch.cat([slope.flatten() for _, slope in felt]))
            return super().gates(units, felt)

    setpoint.Sparsifier(
        model, opt, method=Spy(), target=0.5, unit="row", steps=STEPS, schedule=setpoint.Schedule(begin=0, end=10)
    )
    inputs, targets = batch(0)
    cross_entropy = nn.functional.cross_entropy
    if way == "accumulated":
        for x, y in zip(inputs.chunk(4), targets.chunk(4)):
            (cross_entropy(model(x), y) / 4).backward()
        opt.step()
    elif way == "clipped":
        cross_entropy(model(inputs), targets).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        opt.step()
        seen[-1] *= norm / 0.01
    elif way == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = cross_entropy(model(inputs), targets)
        loss.backward()
        opt.step()
    elif way in ("scaled", "unscaled", "fused"):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
        scaler.scale(cross_entropy(model(inputs), targets)).backward()
        if way == "unscaled":
            scaler.unscale_(opt)
        scaler.step(opt)
    elif way == "closure":

        def closure():
            opt.zero_grad()
            loss = cross_entropy(model(inputs), targets)
            loss.backward()
            return loss

        opt.step(closure)
    else:
        cross_entropy(model(inputs), targets).backward()
        opt.step()
    assert len(seen) == 1
    return seen[0]


@pytest.mark.parametrize("way", ["accumulated", "clipped", "autocast", "scaled", "unscaled", "fused", "closure"])
def test_however_a_batch_is_handed_over_gates_learn_the_same(way):
    want, found = lessons("plain"), lessons(way)
    assert float(want.abs().max()) > 1e-3
    assert torch.allclose(found, want, rtol=1e-3, atol=2e-3 if way == "autocast" else 1e-6)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_compiled_models_feel_the_gates(when, backend):
    def run(compiled):
        model, _, batch = build("mlp")
        running = torch.compile(model, backend=backend, fullgraph=True) if compiled and when == "before" else model
        opt = torch.optim.SGD(model.parameters(), lr=0.05)
        sparsifier = setpoint.Sparsifier(running, opt, method="l0", target=0.6, unit="row", steps=STEPS)
        if compiled and when == "after":
            running = torch.compile(model, backend=backend, fullgraph=True)
        middle = None
        for step in range(STEPS):
            train(running, opt, batch, 1, start=step)
            if step == 6:
                middle = running(batch(0)[0]).detach()
        assert sparsifier.report().exact
        return middle, model

    (middle, plain), (compiled_middle, compiled) = run(False), run(True)
    assert torch.allclose(middle, compiled_middle, atol=1e-4)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(plain.parameters(), compiled.parameters()))


def test_a_compiled_model_is_compiled_once_for_each_phase():
    counter = torch._dynamo.testing.CompileCounter()
    model, opt, batch = build("mlp")
    setpoint.Sparsifier(model, opt, method="l0", target=0.6, unit="row", steps=STEPS)
    train(torch.compile(model, backend=counter), opt, batch, STEPS)
    assert counter.frame_count <= 3


def test_other_dtypes_keep_theirs():
    for dtype in (torch.bfloat16, torch.float64):
        model, _, batch = build("mlp")
        model = model.to(dtype)
        opt = torch.optim.SGD(model.parameters(), lr=0.05)
        sparsifier = setpoint.Sparsifier(model, opt, method="l0", target=0.6, steps=STEPS)
        for step in range(STEPS):
            inputs, targets = batch(step)
            opt.zero_grad()
            nn.functional.cross_entropy(model(inputs.to(dtype)).float(), targets).backward()
            opt.step()
        assert sparsifier.report().exact
        assert all(p.dtype == dtype for p in model.parameters())
        assert sum(int(torch.count_nonzero(model.get_parameter(n))) for n in sparsifier.masks) == sum(
            int(m.sum()) for m in sparsifier.masks.values()
        )


def test_attention_and_recurrent_cells_that_read_their_weights_are_gated():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.cell = nn.MultiheadAttention(8, 2), nn.GRUCell(8, 8)

        def forward(self, x):
            return self.cell(self.attention(x, x, x)[0].mean(0))

    torch.manual_seed(0)
    model, inputs = Net(), torch.randn(5, 3, 8)
    names = ["attention.in_proj_weight", "cell.weight_hh", "cell.weight_ih"]
    for training in (True, False):
        gates, _, values = gated(model.train(training), "weight", include=names)
        assert len(values) == 3
        for i, z in enumerate(values):
            gates.put(i, z, z)
        with torch.no_grad():
            found = model(inputs)
        gates.detach()
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for layer, z in zip(gates._layers, values):
                twin.get_parameter(layer.name).mul_(z.reshape(layer.parts[0].parameter.shape))
            assert torch.allclose(found, twin(inputs), atol=1e-5)


class Conv1D(nn.Module):
    """As Hugging Face has it: inputs by outputs."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 4, 5))
        self.downs = nn.ParameterList([torch.randn(5, 4) for _ in range(3)])

    def forward(self, x):
        return sum(torch.relu(x @ up) @ down for up, down in zip(self.up, self.downs))


class Pair(nn.Bilinear):
    def forward(self, x):
        return super().forward(x, x.flip(0))


class Attention(nn.Module):
    """Its attention hands the weight of another module to a kernel."""

    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.inner(x[None], x[None], x[None])[0]


def parametrized():
    model = nn.Linear(4, 4)
    return nn.utils.parametrize.register_parametrization(model, "weight", nn.Softplus(), unsafe=True)


def normed():
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Linear(4, 4))


def floats():
    return torch.randn(7, 4, generator=torch.Generator().manual_seed(3))


def words():
    return torch.arange(7) % 5


# By name: the module, the parameter, and its input.
KINDS = {
    "bilinear": (lambda: Pair(4, 4, 3), "weight", floats),
    "conv1d": (Conv1D, "weight", floats),
    "experts": (Experts, "up", floats),
    "list of experts": (Experts, "downs.1", floats),
    "attention in": (Attention, "inner.in_proj_weight", floats),
    "attention out": (Attention, "inner.out_proj.weight", floats),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True),
        "linear1.weight",
        lambda: floats()[None],
    ),
    "embedding": (lambda: nn.Embedding(5, 4), "weight", words),
    "sparse embedding": (lambda: nn.Embedding(5, 4, sparse=True), "weight", words),
    "parametrized": (parametrized, "parametrizations.weight.original", floats),
    "weight norm": (normed, "weight_v", floats),
    "recurrent cell": (lambda: nn.LSTMCell(4, 4), "weight_ih", floats),
    "layer norm": (lambda: nn.LayerNorm(4), "weight", floats),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_reads_a_parameter_as_an_attribute_is_gated(kind, training):
    factory, name, inputs_of = KINDS[kind]
    torch.manual_seed(0)
    model, inputs = factory().train(training), inputs_of()
    parameter = model.get_parameter(name)
    units = partition("weight", Layout(tuple(parameter.shape)))
    gates = Gates(model, [Layer(name, (Part(name, parameter, units),))])
    gates.attach()
    z = 0.2 + 0.6 * torch.rand(parameter.shape)
    gates.put(0, *((z, z + 0.1) if training else (z + 0.1, z)))

    def loss(outputs):
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        return (outputs * torch.linspace(-1, 1, outputs.numel()).reshape(outputs.shape)).sum() + outputs.square().mean()

    with torch.no_grad():
        without_gradients = loss(model(inputs))
    loss(model(inputs)).backward()
    found = gates.slopes(0, OptimizerSet([torch.optim.SGD([parameter], lr=0.1)]))
    # Torch itself copies neither of these in this state.
    copied = None if kind in ("parametrized", "weight norm") else copy.deepcopy(model.eval())
    tested = loss(model.eval()(inputs)).detach()
    gates.detach()
    by_hand = z.clone().requires_grad_()
    values = {name: parameter.detach() * by_hand}
    want = loss(torch.func.functional_call(model.train(training), values, inputs))
    assert torch.allclose(without_gradients, want, rtol=1e-4, atol=1e-5)
    derivative = torch.autograd.grad(want, by_hand)[0].to_dense()
    assert torch.allclose(found, derivative.flatten(), rtol=1e-3, atol=1e-4)
    assert float(derivative.abs().max()) > 0.01
    if copied is not None:
        assert torch.allclose(loss(copied(inputs)), tested, rtol=1e-4, atol=1e-5)
        assert [type(m) for m in copied.modules()] == [type(m) for m in factory().modules()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_may_change_its_dtype_in_the_middle(dtype):
    model, opt, batch = build("convnet")
    schedule = setpoint.Schedule(begin=2, end=10)
    sparsifier = setpoint.Sparsifier(model, opt, method="l0", target=0.5, unit="kernel", steps=STEPS, schedule=schedule)
    train(model, opt, batch, 5)
    model.to(dtype)
    opt.state.clear()
    sparsifier.report()
    for step in range(5, STEPS):
        inputs, targets = batch(step)
        opt.zero_grad()
        outputs = model(inputs.to(dtype))
        assert outputs.dtype == dtype
        nn.functional.cross_entropy(outputs.float(), targets).backward()
        opt.step()
    assert sparsifier.report().exact
    assert [type(m) for m in model.modules()] == [type(m) for m in build("convnet")[0].modules()]


@pytest.mark.parametrize("taken", [1, 5])
def test_gates_follow_a_parameter_to_another_module_and_a_module_to_another_parent(taken):
    """Of the parameter: until the gates are hung. From then on they are where it was."""
    model, opt, batch = build("mlp")
    schedule = setpoint.Schedule(begin=3, end=10)
    sparsifier = setpoint.Sparsifier(model, opt, method="l0", target=0.5, unit="row", steps=STEPS, schedule=schedule)
    train(model, opt, batch, taken)
    if taken == 1:
        other = nn.Linear(20, 18)
        other.weight, other.bias = model[0].weight, model[0].bias
        model[0] = other
    layer = model[0]
    model[0] = nn.Sequential(layer)
    train(model, opt, batch, 5 - taken, start=taken)
    assert type(layer).__name__ == "GatedLinear"
    train(model, opt, batch, STEPS - 5, start=5)
    assert sparsifier.report().exact
    assert [type(m).__name__ for m in model.modules()][:3] == ["Sequential", "Sequential", "Linear"]


@pytest.mark.parametrize("taken", [1, 5])
def test_a_layer_that_is_replaced_has_no_gates(taken):
    model, opt, batch = build("mlp")
    schedule = setpoint.Schedule(begin=3, end=10)
    setpoint.Sparsifier(model, opt, method="l0", target=0.5, unit="row", steps=STEPS, schedule=schedule)
    train(model, opt, batch, taken)
    old, model[2] = model[2], nn.Linear(18, 16)
    if taken == 1:
        with pytest.warns(UserWarning, match=r"parameter '2.weight' is no longer in the model"):
            train(model, opt, batch, 4, start=1)
    else:
        train(model, opt, batch, 1, start=5)
    assert [type(m).__name__ for m in model][::2] == ["GatedLinear", "Linear", "GatedLinear"]
    train(model, opt, batch, STEPS, start=5)
    assert [type(m) for m in (*model, old)] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear, nn.Linear]


def test_a_parameter_that_has_come_to_be_shared_is_refused_where_the_gates_would_be_hung():
    model, opt, batch = build("mlp")
    schedule = setpoint.Schedule(begin=2, end=10)
    setpoint.Sparsifier(model, opt, method="l0", target=0.5, unit="row", steps=STEPS, schedule=schedule)
    model.append(nn.Linear(20, 18))
    model[5].weight = model[0].weight
    model.forward = lambda x: model[:5](x)
    with pytest.raises(ValueError, match=r"'0.weight' is shared by 2 modules \(Linear, Linear\)"):
        train(model, opt, batch, 4)


def test_a_norm_whose_scale_is_shared_carries_no_gates():
    model, opt, batch = build("convnet")
    model.other = nn.BatchNorm2d(8)
    model.other.weight = model.norm.weight
    schedule = setpoint.Schedule(begin=2, end=10)
    sparsifier = setpoint.Sparsifier(model, opt, method="l0", target=0.5, unit="filter", steps=STEPS, schedule=schedule)
    train(model, opt, batch, 4)
    assert sparsifier.state_dict()["norms"] == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_slopes_are_finite_whatever_the_gradients_are(dtype):
    torch.manual_seed(0)
    model = mlp().to(dtype)
    gates, optimizer, _ = gated(model, "row")
    loss_of(model, torch.randn(4, 20, dtype=dtype)).backward()
    want, parameter = gates.slopes(0, OptimizerSet([optimizer])), gates._layers[0].parts[0].parameter
    kept = torch.arange(18) != 3
    for bad in (torch.nan, torch.inf, -torch.inf, torch.finfo(dtype).max):
        parameter.grad[3] = bad
        slopes = gates.slopes(0, OptimizerSet([optimizer]))
        assert bool(torch.isfinite(slopes).all())
        assert torch.equal(slopes[kept], want[kept])


def test_several_runs_on_one_model_have_gates_and_leave_each_by_itself():
    model, opt, batch = build("convnet")
    options = {"method": "l0", "target": 0.5, "unit": "filter", "steps": STEPS}
    early, late = setpoint.Schedule(begin=2, end=8), setpoint.Schedule(begin=5, end=12)
    first = setpoint.Sparsifier(model, opt, include="conv1.*", schedule=early, **options)
    second = setpoint.Sparsifier(model, opt, include=["grouped.*", "up.*"], schedule=late, **options)
    train(model, opt, batch, 3)
    assert [n for n, m in model.named_modules() if type(m).__name__.startswith("Gated")] == ["norm"]
    train(model, opt, batch, 3, start=3)
    assert [n for n, m in model.named_modules() if type(m).__name__.startswith("Gated")] == ["norm", "grouped", "up"]
    train(model, opt, batch, 3, start=6)
    assert first.phase == "frozen"
    assert [n for n, m in model.named_modules() if type(m).__name__.startswith("Gated")] == ["grouped", "up"]
    train(model, opt, batch, STEPS, start=9)
    assert first.report().exact
    assert second.report().exact
    assert [type(m) for m in model.modules()] == [type(m) for m in build("convnet")[0].modules()]
