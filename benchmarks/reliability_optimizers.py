"""Every optimizer that is installed, under several methods: does it end exact, and stay so, or is it refused?

The optimizers of torch, timm, pytorch_optimizer, schedulefree, bitsandbytes, torchao and others train a small network
for 60 steps towards 80 % zeros. After the freeze the zeros are looked at after every step, and after `optimizer.eval()`
and `optimizer.train()` where there are such. Packages that are not installed are left out.

    python benchmarks/reliability_optimizers.py
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import cache
from io import StringIO
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from setpoint import Sparsifier

STEPS, TARGET = 60, 0.8
METHODS = ("magnitude", "rigl", "static", "l0", "wgsef")
PACKAGES = (
    "torch.optim",
    "timm.optim",
    "pytorch_optimizer",
    "schedulefree",
    "bitsandbytes.optim",
    "torchao.optim",
    "torch_optimizer",
    "prodigyopt",
    "dadaptation",
    "lion_pytorch",
    "adabelief_pytorch",
    "came_pytorch",
    "galore_torch",
)
Factory = Callable[[nn.Module], Any]
# The ways in which a step may have to be taken.
WAYS = ("plain", "graph", "closure", "closure graph")


def network() -> nn.Module:
    """Large enough for 8-bit states, which begin at 4096 entries; its largest weight is square."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(32, 24, generator=generator)
    return inputs, inputs[:, :8].argmax(1)


def found() -> Iterator[tuple[str, Factory]]:
    """Optimizers by name: all classes of all packages, with their defaults, and some with options."""
    for package in PACKAGES:
        module = imported(package)
        for name, kind in sorted(vars(module).items()) if module is not None else ():
            if inspect.isclass(kind) and issubclass(kind, Optimizer) and not inspect.isabstract(kind):
                yield f"{package}.{name}", _factory(kind)
    yield from _options()
    yield from _wrapped()


@cache
def imported(package: str) -> ModuleType | None:
    try:
        if package == "timm.optim":
            # The rest of timm wants torchvision, which its optimizers do without.
            with _bare("timm", "timm.models"):
                return importlib.import_module(package)
        return importlib.import_module(package)
    except ImportError:
        return None


@contextmanager
def _bare(package: str, left_out: str) -> Iterator[None]:
    """A package of which only the submodules asked for are imported, and one of them is a stand-in."""
    spec = importlib.util.find_spec(package)
    if spec is None or package in sys.modules:
        yield
        return
    bare = ModuleType(package)
    bare.__path__ = list(spec.submodule_search_locations or ())
    sys.modules.update({package: bare, left_out: MagicMock(__spec__=None)})
    yield
    del sys.modules[package], sys.modules[left_out]


def _factory(kind: Any) -> Factory:
    def make(model: nn.Module) -> Any:
        parameters = list(model.parameters())
        tries: list[Callable[[], Any]] = [
            lambda: kind(parameters),
            lambda: kind(parameters, lr=1e-3),
            lambda: kind([p for p in parameters if p.ndim == 2], lr=1e-3),
            lambda: kind(AdamW(parameters, lr=1e-2)),
            lambda: kind(parameters, AdamW, lr=1e-2),
            lambda: kind(parameters, AdamW(parameters, lr=1e-2)),
            lambda: kind(model),
            lambda: kind(model, lr=1e-3),
            lambda: kind(model.named_parameters(), lr=1e-3),
            lambda: kind(parameters, num_iterations=STEPS),
            lambda: kind(parameters, lr=1e-3, momentum=0.9),
            lambda: kind(parameters, num_data=32),
            lambda: kind(model, parameters, AdamW, lr=1e-2),
            lambda: kind(_in_two_groups(parameters)),
        ]
        for attempt in tries:
            try:
                return attempt()
            except Exception as error:  # noqa: PERF203
                last = error
        raise last

    return make


def _in_two_groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """As optimizers want them that treat matrices in a way of their own."""
    return [{"params": [p for p in parameters if (p.ndim == 2) == wide], "use_muon": wide} for wide in (True, False)]


def _options() -> Iterator[tuple[str, Factory]]:
    ways: dict[str, dict[str, Any]] = {
        "foreach": {"foreach": True},
        "fused": {"fused": True},
        "capturable": {"capturable": True},
        "amsgrad": {"amsgrad": True},
        "tensor lr": {"lr": torch.tensor(1e-3)},
        "maximize": {"maximize": True},
        "differentiable": {"differentiable": True},
    }
    for kind in (v for v in vars(torch.optim).values() if inspect.isclass(v) and issubclass(v, Optimizer)):
        for name, options in ways.items():
            if next(iter(options)) in inspect.signature(kind).parameters:
                yield (
                    f"torch.optim.{kind.__name__} ({name})",
                    lambda m, kind=kind, options=options: kind(m.parameters(), **options),
                )
    for steps in (1, 20):
        yield f"torch.optim.LBFGS (max_iter={steps})", lambda m, n=steps: torch.optim.LBFGS(m.parameters(), max_iter=n)


def _wrapped() -> Iterator[tuple[str, Factory]]:
    """Wrappers around ordinary optimizers, and around those whose steps mix the entries of a parameter."""
    bases: dict[str, Factory] = {
        "SGD": lambda m: SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3),
        "AdamW": lambda m: AdamW(m.parameters(), lr=1e-2),
        "Muon": lambda m: torch.optim.Muon([p for p in m.parameters() if p.ndim == 2], lr=1e-2),
    }
    for package, names in {
        "timm.optim": ("Lookahead",),
        "pytorch_optimizer": ("Lookahead", "ScheduleFreeWrapper", "TRAC", "OrthoGrad"),
        "torch_optimizer": ("Lookahead",),
        "schedulefree": ("ScheduleFreeWrapper", "ScheduleFreeWrapperReference"),
    }.items():
        module = imported(package)
        for name in names:
            for base, make in bases.items():
                if hasattr(module, name):
                    kind = getattr(module, name)
                    yield f"{package}.{name}({base})", lambda m, kind=kind, make=make: kind(make(m))


def step_with(optimizer: Any, model: nn.Module, step: int, way: str) -> None:
    inputs, targets = batch(step)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(model(inputs), targets)
        value.backward(create_graph="graph" in way)
        return value

    with torch.enable_grad():
        loss()
    optimizer.step(loss) if "closure" in way else optimizer.step()


def way_of(make: Factory) -> str | None:
    """How steps of an optimizer are taken without a sparsifier; None if it cannot be run here."""
    for way in WAYS:
        try:
            model = network()
            optimizer = make(model)
            _switch(optimizer, "train")
            for step in range(3):
                step_with(optimizer, model, step, way)
        except Exception:
            continue
        return way
    return None


def _switch(optimizer: Any, mode: str) -> bool:
    method = getattr(optimizer, mode, None)
    if callable(method):
        method()
    return callable(method)


def outcome(make: Factory, method: str, way: str) -> tuple[str, str]:
    """`"exact"`, `"refused"`, `"failed"` or `"broken"`, and why."""
    model = network()
    optimizer = make(model)
    try:
        sparsifier = Sparsifier(model, optimizer, method=method, target=TARGET, steps=STEPS)
    except (ValueError, TypeError) as error:
        return "refused", str(error)
    try:
        _switch(optimizer, "train")
        for step in range(STEPS + 5):
            step_with(optimizer, model, step, way)
            if sparsifier.phase == "frozen" and not whole(sparsifier):
                return "broken", f"step {step}"
        if sparsifier.phase != "frozen":
            return "broken", f"it ended at step {sparsifier.step} in the phase {sparsifier.phase!r}"
        for mode in ("eval", "train", "eval"):
            if _switch(optimizer, mode) and not whole(sparsifier):
                return "broken", f"{mode}()"
        if not all(bool(p.isfinite().all()) for p in model.parameters()):
            return "not finite", ""
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"
    return "exact", ""


def whole(sparsifier: Sparsifier) -> bool:
    """Whether the zeros are there and as many as were asked for."""
    zeros = all(not bool(sparsifier.model.get_parameter(n)[~mask].any()) for n, mask in sparsifier.masks.items())
    return zeros and sparsifier.report().exact


def run(long: bool) -> dict[str, Any]:
    """Try everything that is installed.

    Args:
        long: with every method; otherwise with `magnitude` and `rigl`, and what is installed with torch alone.

    Returns:
        Counts of runs and of optimizers by outcome, the refusals with their reasons, and whatever went wrong.
    """
    counts: Counter[str] = Counter()
    refused: dict[str, str] = {}
    wrong: dict[str, str] = {}
    cannot: list[str] = []
    tried = 0
    for name, make in found():
        if not long and not name.startswith("torch."):
            continue
        with ExitStack() as quiet:
            quiet.enter_context(warnings.catch_warnings())
            quiet.enter_context(redirect_stdout(StringIO()))
            # Some compile their steps, which takes far longer than to run them.
            quiet.enter_context(torch.compiler.set_stance("force_eager"))
            warnings.simplefilter("ignore")
            way = way_of(make)
            if way is None:
                cannot.append(name)
                continue
            tried += 1
            for method in METHODS if long else METHODS[:2]:
                kind, why = outcome(make, method, way)
                counts[kind] += 1
                if kind == "refused":
                    refused[name] = why
                elif kind != "exact":
                    wrong[f"{name}, {method}"] = f"{kind}: {why}"
                if kind != "exact":
                    print(f"{name}, {method}: {kind}: {why}", file=sys.stderr)
    return {
        "optimizers": tried,
        "runs": sum(counts.values()),
        "exact": counts["exact"],
        "refused at construction": counts["refused"],
        "failed in mid-run": counts["failed"],
        "zeros broken": counts["broken"],
        "weights not finite": counts["not finite"],
        "refusals": refused,
        "wrong": wrong,
        "cannot be run here": cannot,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="torch's own with two methods")
    arguments = parser.parse_args()
    since = time.time()
    print(json.dumps({**run(not arguments.short), "seconds": round(time.time() - since)}, indent=1))


if __name__ == "__main__":
    main()
