"""A trained model's layers on the kernels that are fastest for them on this machine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from setpoint.deploy.kernels.chains import chained, left_transposed
from setpoint.deploy.kernels.layers import Calls, Site, find_sites, recorded_calls
from setpoint.deploy.kernels.matrices import nbytes
from setpoint.deploy.kernels.race import Race, Timer, gain
from setpoint.deploy.kernels.registry import KERNELS
from setpoint.deploy.kernels.report import KernelReport
from setpoint.deploy.kernels.trial import Rules, Trial, difference, try_kernels
from setpoint.units import unwrap

# By how much the whole model must win to come back swapped.
_MARGIN_OF_ALL = 0.02


@torch.no_grad()
def use_sparse_kernels(
    model: nn.Module,
    example_inputs: Any,
    *,
    kernels: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    margin: float = 0.1,
    tolerance: float | None = None,
    timer: Timer | None = None,
) -> tuple[nn.Module, KernelReport]:
    """A copy of a trained model for inference, with sparse kernels where they are measured to be faster.

    Every Linear, every convolution of kernel size 1 and every Conv1D of transformers with zeros in its weight is timed
    on the inputs that it gets from the example, dense and in each form that suits its zeros, in turns. It is given the
    fastest if that beats the dense one by the margin. At the end the whole model is timed against the dense one, and
    layers are given back, those that gain least first, until it is faster by 2 % or more, or dense again.

    What is faster depends on the machine, on the number of threads and on the size of the batch: give the batch that
    the model will be used with, and call this on the machine, and with `torch.set_num_threads`, that it will run with.

    Args:
        model: trained; not changed. Compile what comes back, not what goes in.
        example_inputs: as the model is called: a tensor, a tuple of arguments, or a mapping of keyword arguments.
        kernels: names of those to try, all by default: "csr" (compressed rows, indices of 32 bits), "bsr4", "bsr8",
            "bsr16", "bsr32" (the same of square blocks), "narrow" (dense, without the rows and columns that are zero
            throughout), "2:4" (semi-structured, in half precision on CUDA).
        exclude: globs of the names of modules that stay dense.
        margin: a kernel must be faster than dense by this fraction.
        tolerance: largest difference of a layer's and of the model's outputs to the dense ones, relative to the
            largest of them; by default 1e-5 in float32, 2e-3 in float16, 2e-2 in bfloat16.
        timer: takes runs by name and returns, for each, seconds that are paired with the others'; by default `Race()`,
            which spends about half a second on each layer.

    Returns:
        The copy, in evaluation mode and without parameters that require gradients; and layer by layer what was
        measured and chosen.

    Raises:
        ValueError: for a kernel that is not known, or a margin or tolerance below 0.
        RuntimeError: if the model fails with its layers swapped.
    """
    names = tuple(KERNELS) if kernels is None else tuple(kernels)
    if unknown := [name for name in names if name not in KERNELS]:
        raise ValueError(f"unknown kernels {', '.join(unknown)}; possible: {', '.join(KERNELS)}")
    if margin < 0 or (tolerance is not None and tolerance < 0):
        raise ValueError(f"margin={margin} and tolerance={tolerance} must be at least 0")
    dense = copy.deepcopy(unwrap(model)).eval().requires_grad_(False)
    run = _Run(dense, example_inputs)
    rules = Rules(names, margin, tolerance, timer or Race())
    # The clock waits for the current GPU.
    with torch.cuda.device(run.device) if run.device.type == "cuda" else nullcontext():
        trials = [try_kernels(site, calls, rules) for site, calls in _called(run, find_sites(dense, exclude))]
        return _Settlement(run, rules, trials).settle()


class _Run:
    """A forward pass of the dense model, and of others in its place, on the example."""

    def __init__(self, dense: nn.Module, example: Any) -> None:
        self.dense = dense
        self.device = next((t.device for t in (*dense.parameters(), *dense.buffers())), torch.device("cpu"))
        self.keywords: dict[str, Any] = {}
        self.arguments: tuple[Any, ...] = ()
        if isinstance(example, Mapping):
            self.keywords = dict(example)
        else:
            self.arguments = example if isinstance(example, tuple) else (example,)

    def of(self, model: nn.Module) -> Callable[[], object]:
        return lambda: model(*self.arguments, **self.keywords)

    def outputs(self, model: nn.Module) -> list[Tensor]:
        return [leaf for leaf in _pytree.tree_leaves(self.of(model)()) if isinstance(leaf, Tensor)]


def _called(run: _Run, sites: Sequence[Site]) -> list[tuple[Site, Calls]]:
    modules = [site.module for site in sites if site.refusal is None]
    with recorded_calls(modules) as calls:
        run.of(run.dense)()
    return [(site, calls.get(site.module, Calls())) for site in sites]


@dataclass(frozen=True)
class _Candidate:
    """A model with layers swapped.

    Attributes:
        model: the dense one's copy, which shares all other tensors with it.
        transposed: names of the layers that leave their outputs transposed.
    """

    model: nn.Module
    transposed: tuple[str, ...] = ()


@dataclass
class _Settlement:
    """From the layers' choices to a model that is faster as a whole."""

    run: _Run
    rules: Rules
    trials: list[Trial]

    def settle(self) -> tuple[nn.Module, KernelReport]:
        dense, dense_ms, expected = self.run.dense, None, self.run.outputs(self.run.dense)
        while swapped := [trial for trial in self.trials if trial.layer is not None]:
            found = self._candidates(swapped)
            off = max(difference(expected, self.run.outputs(one.model)) for one in found.values())
            if off > max(self.rules.tolerated(trial.site.weight.dtype) for trial in swapped):
                why = f"the outputs differ by {off:.2g} of their size"
            else:
                runs = {"dense": self.run.of(dense)} | {name: self.run.of(one.model) for name, one in found.items()}
                times = self.rules.timer(runs)
                ms, best = {name: 1e3 * median(taken) for name, taken in times.items()}, "sparse"
                if "transposed" in found and gain(times["sparse"], times["transposed"]) >= 1.0 + _MARGIN_OF_ALL:
                    best = "transposed"
                dense_ms, faster = ms["dense"], gain(times["dense"], times[best])
                if faster >= 1.0 + _MARGIN_OF_ALL:
                    return found[best].model, self._report(found[best], dense_ms, ms[best], faster, off)
                why = f"the model is {faster:.2f} times as fast"
            # A quarter at a time, so that there are not as many races as layers.
            for trial in sorted(swapped, key=lambda trial: trial.saved_ms)[: (len(swapped) + 3) // 4]:
                trial.give_back(f"given back: with {len(swapped)} layers swapped, {why}")
        return dense, self._report(_Candidate(dense), dense_ms, dense_ms, 1.0, 0.0)

    def _candidates(self, swapped: Sequence[Trial]) -> dict[str, _Candidate]:
        """With the layers swapped; and with the outputs left transposed between those of them that allow it."""
        layers = {trial.site.module: trial.layer for trial in swapped if trial.layer is not None}
        plain = self._assembled(layers)
        try:
            stay = chained(plain, lambda model: self.run.of(model)())
        except Exception as error:
            names = ", ".join(trial.site.name for trial in swapped)
            raise RuntimeError(
                f"the model fails with the kernels of these layers swapped: {names}; leave out with exclude=... those "
                f"whose weights it reads itself ({error})"
            ) from error
        if not stay:
            return {"sparse": _Candidate(plain)}
        twins = {old: left_transposed(new) if new in stay else new for old, new in layers.items()}
        names_of = tuple(trial.site.name for trial in swapped if trial.layer in stay)
        return {"sparse": _Candidate(plain), "transposed": _Candidate(self._assembled(twins), names_of)}

    def _assembled(self, layers: Mapping[nn.Module, nn.Module]) -> nn.Module:
        dense = self.run.dense
        memo: dict[int, Any] = {id(t): t for t in (*dense.parameters(), *dense.buffers())}
        memo |= {id(old): new for old, new in layers.items()}
        model: nn.Module = copy.deepcopy(dense, memo)
        return model.eval()

    def _report(
        self, one: _Candidate, dense_ms: float | None, ms: float | None, faster: float, off: float
    ) -> KernelReport:
        device = self.run.device
        return KernelReport(
            layers=tuple(trial.report() for trial in self.trials),
            transposed=one.transposed,
            dense_ms=dense_ms,
            ms=ms,
            gain=faster,
            difference=off,
            dense_bytes=nbytes(self.run.dense),
            bytes=nbytes(one.model),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            threads=torch.get_num_threads(),
            margin=self.rules.margin,
        )
