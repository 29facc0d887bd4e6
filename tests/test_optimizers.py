"""Every optimizer that users bring ends exact and stays so, or is refused before the run."""

import inspect
import random
from collections import defaultdict

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import setpoint
from setpoint.optimizers import checked_optimizer

from nets import build, train

STEPS = 20


class ScheduleFree(Optimizer):
    """Steps are taken by z; the weights are an average that is left of it while training, and of x in evaluation."""

    def __init__(self, params, lr=0.05, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0, "training": False})

    def _switch(self, training):
        for group in self.param_groups:
            weight = 1 - group["beta"] if training else 1 - 1 / group["beta"]
            for p in group["params"] if group["training"] != training else ():
                if self.state[p]:
                    p.data.lerp_(self.state[p]["z"], weight)
            group["training"] = training

    def train(self):
        self._switch(True)

    def eval(self):
        self._switch(False)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["training"]
            group["k"] += 1
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                mean = 1 / group["k"]
                p.lerp_(z, mean).sub_(p.grad, alpha=group["lr"] * (1 - group["beta"] * (1 - mean)))
                z.sub_(p.grad, alpha=group["lr"])


class ScheduleFreeMixing(ScheduleFree):
    """No entry's step depends on its own gradient alone: z moves everywhere."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = p.grad - p.grad.mean()
        super().step()


class Coded(Optimizer):
    """Momentum as a number of a table: code 0 is the most negative one."""

    def __init__(self, params, lr=0.05, nested=False):
        super().__init__(params, {"lr": lr, "nested": nested})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state = state.setdefault("inner", [{}])[0] if group["nested"] else state
                if not state:
                    state["codes"] = torch.full_like(p, 100, dtype=torch.uint8)
                    state["table"] = (torch.arange(201.0) - 100) / 100
                    state["scale"] = torch.zeros(())
                momentum = decode(state).mul(0.9).add(p.grad)
                state["scale"] = momentum.abs().max()
                state["codes"] = (momentum / state["scale"].clamp_min(1e-12) * 100).round().add(100).to(torch.uint8)
                p.sub_(decode(state), alpha=group["lr"])


def decode(state):
    return state["table"][state["codes"].long()] * state["scale"]


class Slow:
    """Blends slow weights back into the fast ones every few steps, after the step inside."""

    def __init__(self, inner, k=3):
        self.inner, self.k, self.count, self.state = inner, k, 0, defaultdict(dict)

    @property
    def param_groups(self):
        return self.inner.param_groups

    def zero_grad(self):
        self.inner.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        self.inner.step(closure)
        self.count += 1
        for p in (p for group in self.param_groups for p in group["params"]):
            slow = self.state[p].setdefault("slow", p.clone())
            if self.count % self.k == 0:
                p.copy_(slow.lerp_(p, 0.5))


class SlowOptimizer(Slow, Optimizer):
    """The same, an optimizer by name that has no working hooks."""


class Elsewhere(Optimizer):
    """Keeps its slow weights where nobody finds them, but runs hooks after they were blended in."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, {})
        self.inner, self.slow = inner, [[p.detach().clone() for p in g["params"]] for g in inner.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        self.inner.step(closure)
        for group, slow in zip(self.param_groups, self.slow):
            for p, s in zip(group["params"], slow):
                p.lerp_(s, 0.1)


class Hidden(Elsewhere):
    """And hands them out in evaluation."""

    def eval(self):
        for group, slow in zip(self.param_groups, self.slow):
            for p, s in zip(group["params"], slow):
                p.data.copy_(s)


class Rewound(Elsewhere):
    """Blends in what the weights were before this step, so that a cut within it is undone; shown to nobody outside."""

    def step(self, closure=None):
        self.slow = [[p.detach().clone() for p in g["params"]] for g in self.param_groups]
        super().step(closure)


class Averaged(Optimizer):
    """Mixed steps, and an average of the weights from zero that takes their place in evaluation."""

    def __init__(self, params, lr=0.05):
        super().__init__(params, {"lr": lr, "evaluating": False})

    @torch.no_grad()
    def eval(self):
        for group in (g for g in self.param_groups if not g["evaluating"]):
            group["evaluating"] = True
            for p in (p for p in group["params"] if self.state[p]):
                self.state[p]["weights"] = p.clone()
                p.copy_(self.state[p]["average"])

    @torch.no_grad()
    def train(self):
        for group in (g for g in self.param_groups if g["evaluating"]):
            group["evaluating"] = False
            for p in (p for p in group["params"] if self.state[p]):
                p.copy_(self.state[p].pop("weights"))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad - p.grad.mean(), alpha=group["lr"])
                self.state[p].setdefault("average", torch.zeros_like(p)).lerp_(p, 0.01)


class SecondOrder(Optimizer):
    """Divides by the diagonal of the Hessian, for which it differentiates the gradients."""

    def __init__(self, params, lr=0.02):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        signs = [torch.randn_like(p).sign() for p in params]
        products = torch.autograd.grad([p.grad for p in params], params, grad_outputs=signs)
        for p, sign, product in zip(params, signs, products):
            average = self.state[p].setdefault("hessian", torch.zeros_like(p))
            average.lerp_((sign * product).abs(), 0.1)
            p.sub_(p.grad / (average + 0.1), alpha=self.param_groups[0]["lr"])


class Whitened(Optimizer):
    """Momentum multiplied by the inverse root of a factor, which is as large as a square parameter."""

    def __init__(self, params, lr=0.02):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for p in (p for group in self.param_groups for p in group["params"]):
            rows = p.grad.reshape(len(p), -1)
            factor = self.state[p].setdefault("factor", torch.eye(len(p)))
            factor.add_(rows @ rows.T)
            root = torch.linalg.cholesky(factor)
            p.sub_(torch.cholesky_solve(rows, root).reshape(p.shape), alpha=self.param_groups[0]["lr"])


class Unforgiving(Optimizer):
    """Fails on gradients that are zero."""

    def __init__(self, params):
        super().__init__(params, {})

    def step(self, closure=None):
        for p in (p for group in self.param_groups for p in group["params"]):
            if bool((p.grad == 0).any()):
                raise ArithmeticError("a gradient is zero")
            p.data.sub_(p.grad, alpha=0.01)


class Logged(torch.optim.AdamW):
    def step(self, closure=None):
        return super().step(closure)


def sgd(params):
    return torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=1e-3)


OPTIMIZERS = {
    "schedule-free": ScheduleFree,
    "schedule-free, mixing": ScheduleFreeMixing,
    "coded": Coded,
    "coded, nested": lambda p: Coded(p, nested=True),
    "slow": lambda p: Slow(sgd(p)),
    "slow, schedule-free inside": lambda p: Slow(ScheduleFree(p)),
    "slow, by name": lambda p: SlowOptimizer(sgd(p)),
    "slow, twice": lambda p: Slow(SlowOptimizer(torch.optim.AdamW(p, lr=0.01)), k=2),
    "elsewhere": lambda p: Elsewhere(sgd(p)),
    "rewound": lambda p: Rewound(sgd(p)),
    "averaged": Averaged,
    "second order": SecondOrder,
    "whitened": Whitened,
    "logged": Logged,
}
METHODS = ["magnitude", "rigl", "l0"]


def switch(optimizer, mode):
    while optimizer is not None:
        getattr(optimizer, mode, lambda: None)()
        optimizer = getattr(optimizer, "inner", None)


def assert_zeros(sparsifier):
    assert sparsifier.report().exact
    for name, mask in sparsifier.masks.items():
        assert not bool(sparsifier.model.get_parameter(name)[~mask].any())


def square():
    """As `build("mlp")`, with a square weight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    return model, build("mlp")[2]


def trained(model, optimizer, batch, step, *, graph=False):
    inputs, targets = batch(step)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), targets).backward(create_graph=graph)
    optimizer.step()


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_hold_at_every_step_and_in_every_mode(name, method):
    model, batch = square()
    optimizer = OPTIMIZERS[name](model.parameters())
    sparsifier = setpoint.Sparsifier(model, optimizer, method=method, target=0.8, steps=STEPS)
    switch(optimizer, "train")
    for step in range(STEPS):
        trained(model, optimizer, batch, step, graph=name == "second order")
        if sparsifier.phase == "frozen" or method in ("static", "rigl", "set"):
            assert_zeros(sparsifier)
    assert sparsifier.step == STEPS
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    for mode in ("eval", "eval", "train", "eval"):
        switch(optimizer, mode)
        assert_zeros(sparsifier)


def torch_optimizers():
    kinds = [k for k in vars(torch.optim).values() if inspect.isclass(k) and issubclass(k, Optimizer)]
    left_out = (Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)
    for kind in (k for k in kinds if k not in left_out):
        yield pytest.param(kind, {}, id=kind.__name__)
        for way in ("foreach", "fused", "amsgrad", "maximize", "centered", "nesterov"):
            if way in inspect.signature(kind).parameters and kind.__name__ != "Muon":
                options = {
                    way: True,
                    **(
                        {"momentum": 0.9, "lr": 0.05}
                        if way == "nesterov" and "momentum" in inspect.signature(kind).parameters
                        else {}
                    ),
                }
                yield pytest.param(kind, options, id=f"{kind.__name__}-{way}")


@pytest.mark.parametrize("method", ["magnitude", "rigl"])
@pytest.mark.parametrize(("kind", "options"), list(torch_optimizers()))
def test_optimizers_of_torch(kind, options, method):
    model, batch = square()
    params = [p for p in model.parameters() if kind.__name__ != "Muon" or p.ndim == 2]
    optimizer = kind(params, **options)
    sparsifier = setpoint.Sparsifier(model, optimizer, method=method, target=0.8, steps=STEPS)
    for step in range(STEPS):
        trained(model, optimizer, batch, step)
        if sparsifier.phase == "frozen":
            assert_zeros(sparsifier)
    assert sparsifier.phase == "frozen"
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("method", ["magnitude", "rigl"])
def test_a_freeze_in_evaluation_mode(method):
    model, batch = square()
    optimizer = ScheduleFree(model.parameters())
    sparsifier = setpoint.Sparsifier(model, optimizer, method=method, target=0.8, steps=STEPS)
    optimizer.train()
    for step in range(8):
        trained(model, optimizer, batch, step)
    optimizer.eval()
    sparsifier.freeze()
    assert_zeros(sparsifier)
    for step in range(8, 12):
        optimizer.train()
        assert_zeros(sparsifier)
        trained(model, optimizer, batch, step)
        assert_zeros(sparsifier)
        optimizer.eval()
        assert_zeros(sparsifier)


@pytest.mark.parametrize("kind", ["AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree"])
@pytest.mark.parametrize("method", ["magnitude", "rigl"])
def test_the_schedulefree_package(kind, method):
    package = pytest.importorskip("schedulefree")
    model, batch = square()
    optimizer = getattr(package, kind)(model.parameters(), lr=0.01)
    sparsifier = setpoint.Sparsifier(model, optimizer, method=method, target=0.8, steps=STEPS)
    optimizer.train()
    for step in range(STEPS):
        trained(model, optimizer, batch, step)
    for mode in ("eval", "train", "eval"):
        switch(optimizer, mode)
        assert_zeros(sparsifier)


@pytest.mark.parametrize("nested", [False, True])
def test_codes_are_cleared_to_the_one_that_means_zero(nested):
    model, batch = square()
    optimizer = Coded(model.parameters(), nested=nested)
    sparsifier = setpoint.Sparsifier(model, optimizer, method="magnitude", target=0.8, steps=STEPS)
    for step in range(5):
        trained(model, optimizer, batch, step)
    sparsifier.freeze()
    for name, mask in sparsifier.masks.items():
        state = optimizer.state[model.get_parameter(name)]
        momentum = decode(state["inner"][0] if nested else state)
        assert not bool(momentum[~mask].any())
        assert bool(momentum[mask].any())


@pytest.mark.parametrize("kind", ["AdamW8bit", "AdamW4bit", "AdamWFp8"])
@pytest.mark.parametrize("method", ["magnitude", "rigl"])
def test_quantised_states_of_torchao(kind, method):
    package = pytest.importorskip("torchao.optim")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 8))
    optimizer = getattr(package, kind)(model.parameters(), lr=0.01)
    sparsifier = setpoint.Sparsifier(model, optimizer, method=method, target=0.8, steps=4)
    with torch.compiler.set_stance("force_eager"):
        for step in range(4):
            trained(model, optimizer, build("mlp")[2], step)
    assert_zeros(sparsifier)


def test_factors_of_a_square_weight_are_left_alone():
    """They have its shape, but their entries are not its entries."""
    model, batch = square()
    optimizer = Whitened(model.parameters())
    sparsifier = setpoint.Sparsifier(model, optimizer, method="magnitude", target=0.8, steps=STEPS)
    for step in range(3):
        trained(model, optimizer, batch, step)
    before = optimizer.state[model[2].weight]["factor"].clone()
    sparsifier.freeze()
    assert torch.equal(optimizer.state[model[2].weight]["factor"], before)


def test_what_grows_begins_with_the_state_of_a_new_weight():
    """Rprop's step size would creep up from its minimum otherwise."""
    model, batch = square()
    optimizer = torch.optim.Rprop(model.parameters(), lr=0.02)
    method = setpoint.methods.RigL(drop_fraction=1.0, decay="constant", replace_step=True)
    sparsifier = setpoint.Sparsifier(
        model, optimizer, method=method, target=0.8, steps=STEPS, schedule=setpoint.Schedule("constant", 0, 10, 5)
    )
    for step in range(5):
        trained(model, optimizer, batch, step)
    trained(model, optimizer, batch, 5)
    for name in sparsifier.masks:
        sizes = optimizer.state[model.get_parameter(name)]["step_size"]
        assert torch.equal(sizes, torch.full_like(sizes, 0.02))


def test_new_weights_may_begin_with_the_mean_of_any_second_moment():
    model, batch = square()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.02)
    method = setpoint.methods.RigL(second_moment="mean", replace_step=True)
    sparsifier = setpoint.Sparsifier(
        model, optimizer, method=method, target=0.8, steps=STEPS, schedule=setpoint.Schedule("constant", 0, 10, 5)
    )
    for step in range(5):
        trained(model, optimizer, batch, step)
    before = sparsifier.masks
    trained(model, optimizer, batch, 5)
    for name, mask in sparsifier.masks.items():
        sums, grown = optimizer.state[model.get_parameter(name)]["sum"], mask & ~before[name]
        if bool(grown.any()):
            old = sums[mask & before[name]]
            assert torch.allclose(sums[grown], old[old > 0].mean())


def test_sparse_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(30, 16, sparse=True), nn.Flatten(), nn.Linear(64, 8))
    optimizers = torch.optim.SparseAdam(model[0].parameters(), lr=0.01)
    sparsifier = setpoint.Sparsifier(model, optimizers, method="magnitude", target=0.8, steps=STEPS, include="0.weight")
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        optimizers.zero_grad()
        model(torch.randint(30, (16, 4), generator=generator)).square().mean().backward()
        optimizers.step()
        if sparsifier.phase == "frozen":
            assert_zeros(sparsifier)
    assert sparsifier.phase == "frozen"


REFUSED = {
    "closure many times": (lambda p: torch.optim.LBFGS(p), "LBFGS: it evaluates its closure .* times within one step"),
    "zeros come back": (lambda p: Hidden(sgd(p)), r"Hidden: eval\(\) of it brings weights back"),
    "fails at zeros": (Unforgiving, "Unforgiving: it fails where weights are held at zero: a gradient is zero"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_the_run_with_nothing_changed(case):
    make, words = REFUSED[case]
    model, _ = square()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = make(model.parameters())
    with pytest.raises(ValueError, match=words):
        setpoint.Sparsifier(model, optimizer, method="magnitude", target=0.8, steps=STEPS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not optimizer.state
    assert not optimizer._optimizer_step_post_hooks


def test_an_optimizer_without_working_hooks_is_refused():
    bare = object.__new__(torch.optim.SGD)
    bare.param_groups, bare.state = [{"params": list(square()[0].parameters())}], {}
    with pytest.raises(ValueError, match="SGD: its step does not run the step hooks"):
        checked_optimizer(bare)


def test_a_step_that_was_replaced_is_refused_and_one_that_was_wrapped_is_not():
    model, _ = square()
    optimizer = sgd(model.parameters())
    step = optimizer.step
    optimizer.step = lambda closure=None: step(closure)
    assert checked_optimizer(optimizer) is optimizer
    scheduled = sgd(model.parameters())
    torch.optim.lr_scheduler.StepLR(scheduled, 1)
    assert checked_optimizer(scheduled) is scheduled
    optimizer.step = lambda closure=None: None
    with pytest.raises(ValueError, match="SGD: its step does not run the step hooks"):
        checked_optimizer(optimizer)


@pytest.mark.parametrize("what", [None, 3, nn.Linear(2, 2), [torch.nn.Parameter(torch.zeros(2))]])
def test_what_is_no_optimizer_is_told_so(what):
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, or a wrapper that holds one"):
        checked_optimizer(what)


def test_a_wrapper_of_several_is_asked_for_them_one_by_one():
    model, _ = square()
    wrapper = type("Both", (), {})()
    wrapper.one, wrapper.other = sgd(model[0].parameters()), sgd(model[2].parameters())
    with pytest.raises(TypeError, match="not Both, which holds 2 of them: hand these over as a list"):
        checked_optimizer(wrapper)


def test_the_trial_leaves_everything_as_it_was():
    model, batch = square()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01))
    train(model, optimizer, batch, 2)
    before = [p.detach().clone() for p in model.parameters()]
    gradients = [p.grad.clone() for p in model.parameters()]
    moments = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in model.parameters()]
    torch.manual_seed(3)
    random.seed(3)
    drawn = torch.rand(4), random.random()
    torch.manual_seed(3)
    random.seed(3)
    assert checked_optimizer(optimizer) is optimizer
    assert torch.equal(torch.rand(4), drawn[0])
    assert random.random() == drawn[1]
    for p, value, gradient, state in zip(model.parameters(), before, gradients, moments):
        assert torch.equal(p, value)
        assert torch.equal(p.grad, gradient)
        assert all(torch.equal(optimizer.state[p][k], v) for k, v in state.items())
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_a_learning_rate_of_zero_hides_nothing():
    """A warm-up begins there, and an optimizer that does not move shows nothing."""
    model, _ = square()
    inner = torch.optim.SGD(model.parameters(), lr=0.0)
    with pytest.raises(ValueError, match="brings weights back"):
        checked_optimizer(Hidden(inner))


class Stacked(Optimizer):
    """Two speeds of momentum: in one tensor, but for large weights, which have a tensor of bfloat16 for each."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1e-2})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(self._momenta(p).sum(0).to(p), alpha=group["lr"])

    def _momenta(self, p):
        state = self.state[p]
        if p.numel() < 200:
            momenta = state.setdefault("momenta", torch.zeros(2, *p.shape))
        else:
            momenta = [state.setdefault(name, torch.zeros_like(p, dtype=torch.bfloat16)) for name in ("fast", "slow")]
        for momentum, speed in zip(momenta, (0.1, 0.01)):
            momentum.lerp_(p.grad.to(momentum), speed)
        return momenta if isinstance(momenta, torch.Tensor) else torch.stack(momenta)


@pytest.mark.parametrize("sizes", [(30, 20, 4), (9, 7, 4), (30, 20, 2)])
@pytest.mark.parametrize("method", ["magnitude", "rigl"])
def test_momenta_that_are_stacked_are_cleared_with_their_weights(sizes, method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(*sizes[:2]), nn.ReLU(), nn.Linear(*sizes[1:]))
    optimizer = Stacked(model.parameters())
    sparsifier = setpoint.Sparsifier(model, optimizer, method=method, target=0.8, steps=20)
    for _ in range(22):
        optimizer.zero_grad()
        model(torch.randn(8, sizes[0])).square().mean().backward()
        optimizer.step()
    assert sparsifier.report().exact
    for name, mask in sparsifier.masks.items():
        for momentum in optimizer.state[model.get_parameter(name)].values():
            assert not bool((momentum * ~mask).any())
            assert bool((momentum * mask).any())
