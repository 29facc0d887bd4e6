"""A trained model's layers on the kernels that are fastest for them on this machine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

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
    trials = [try_kernels(site, calls, rules) for site, calls in _called(run, find_sites(dense, exclude))]
    return _Settlement(run, rules, trials).settle()


class _Run:
    """A forward pass of the dense model, and of others in its place, on the example."""

    def __init__(self, dense: nn.Module, example: Any) -> None:
        self.dense = dense
        self.keywords = dict(example) if isinstance(example, Mapping) else {}
        self.arguments = () if self.keywords else example if isinstance(example, tuple) else (example,)

    def of(self, model: nn.Module) -> Callable[[], object]:
        return lambda: model(*self.arguments, **self.keywords)

    def outputs(self, model: nn.Module) -> list[Tensor]:
        return [leaf for leaf in _pytree.tree_leaves(self.of(model)()) if isinstance(leaf, Tensor)]


def _called(run: _Run, sites: Sequence[Site]) -> list[tuple[Site, Calls]]:
    modules = [site.module for site in sites if site.refusal is None]
    with recorded_calls(modules) as calls:
        run.of(run.dense)()
    return [(site, calls.get(site.module, Calls())) for site in sites]


@dataclass
class _Settlement:
    """From the layers' choices to a model that is faster as a whole."""

    run: _Run
    rules: Rules
    trials: list[Trial]

    def settle(self) -> tuple[nn.Module, KernelReport]:
        dense_ms, expected = None, self.run.outputs(self.run.dense)
        while swapped := [trial for trial in self.trials if trial.layer is not None]:
            fast = self._assembled()
            off = difference(expected, self._outputs(fast, swapped))
            if off > max(self.rules.tolerated(trial.site.weight.dtype) for trial in swapped):
                why = f"the outputs differ by {off:.2g} of their size"
            else:
                times = self.rules.timer({"dense": self.run.of(self.run.dense), "sparse": self.run.of(fast)})
                dense_ms, faster = 1e3 * median(times["dense"]), gain(times["dense"], times["sparse"])
                if faster >= 1.0 + _MARGIN_OF_ALL:
                    return fast, self._report(fast, dense_ms, 1e3 * median(times["sparse"]), faster, off)
                why = f"the model is {faster:.2f} times as fast"
            # A quarter at a time, so that there are not as many races as layers.
            for trial in sorted(swapped, key=lambda trial: trial.saved_ms)[: (len(swapped) + 3) // 4]:
                trial.give_back(f"given back: with {len(swapped)} layers swapped, {why}")
        return self.run.dense, self._report(self.run.dense, dense_ms, dense_ms, 1.0, 0.0)

    def _assembled(self) -> nn.Module:
        """The dense model with its layers swapped, which shares all other tensors with it."""
        dense = self.run.dense
        memo: dict[int, Any] = {id(t): t for t in (*dense.parameters(), *dense.buffers())}
        memo |= {id(trial.site.module): trial.layer for trial in self.trials if trial.layer is not None}
        model: nn.Module = copy.deepcopy(dense, memo)
        return model.eval()

    def _outputs(self, model: nn.Module, swapped: Sequence[Trial]) -> list[Tensor]:
        try:
            return self.run.outputs(model)
        except Exception as error:
            names = ", ".join(trial.site.name for trial in swapped)
            raise RuntimeError(
                f"the model fails with the kernels of these layers swapped: {names}; leave out with exclude=... those "
                f"whose weights it reads itself ({error})"
            ) from error

    def _report(
        self, model: nn.Module, dense_ms: float | None, ms: float | None, faster: float, off: float
    ) -> KernelReport:
        device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        return KernelReport(
            layers=tuple(trial.report() for trial in self.trials),
            dense_ms=dense_ms,
            ms=ms,
            gain=faster,
            difference=off,
            dense_bytes=nbytes(self.run.dense),
            bytes=nbytes(model),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            threads=torch.get_num_threads(),
            margin=self.rules.margin,
        )
