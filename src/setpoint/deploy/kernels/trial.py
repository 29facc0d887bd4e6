"""One layer's kernels, tried against the dense one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor, nn

from setpoint.deploy.kernels.layers import Calls, Site
from setpoint.deploy.kernels.matrices import nbytes
from setpoint.deploy.kernels.modules import SparseLayer
from setpoint.deploy.kernels.race import Timer, gain
from setpoint.deploy.kernels.registry import KERNELS
from setpoint.deploy.kernels.report import LayerKernels

# How far outputs may be from the dense ones', relative to the largest of them.
_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Rules:
    """How kernels are chosen: the arguments of `use_sparse_kernels`."""

    kernels: tuple[str, ...]
    margin: float
    tolerance: float | None
    timer: Timer

    def tolerated(self, dtype: torch.dtype) -> float:
        """How far outputs may be off."""
        return _TOLERANCES[dtype] if self.tolerance is None else self.tolerance


@dataclass
class Trial:
    """What came of trying one layer's kernels.

    Attributes:
        site: the layer in the dense model.
        layer: what was chosen to stand in its place; None where it stays dense.
        chosen, reason, dense_ms, kernels_ms, gains, refused: as in `LayerKernels`.
    """

    site: Site
    layer: SparseLayer | None = None
    chosen: str = "dense"
    reason: str = ""
    dense_ms: float | None = None
    kernels_ms: dict[str, float] = field(default_factory=dict)
    gains: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def saved_ms(self) -> float:
        """Milliseconds of a forward pass that the chosen kernel saves."""
        return (self.dense_ms or 0.0) - self.kernels_ms[self.chosen]

    def give_back(self, reason: str) -> None:
        """Stay dense after all."""
        self.layer, self.chosen, self.reason = None, "dense", reason

    def report(self) -> LayerKernels:
        """Counted and in words."""
        site, held = self.site, nbytes(self.site.module)
        return LayerKernels(
            name=site.name,
            shape=tuple(site.weight.shape),
            density=int(torch.count_nonzero(site.weight)) / max(1, site.weight.numel()),
            chosen=self.chosen,
            reason=self.reason,
            dense_ms=self.dense_ms,
            kernels_ms=self.kernels_ms,
            gains=self.gains,
            refused=self.refused,
            dense_bytes=held,
            bytes=held if self.layer is None else nbytes(self.layer),
        )


def try_kernels(site: Site, calls: Calls, rules: Rules) -> Trial:
    """Time a layer's kernels against the dense one on the inputs that it gets, and choose."""
    trial = Trial(site)
    refusal = (
        site.refusal or calls.refusal or (None if calls.inputs else "its forward is not called on the example inputs")
    )
    if refusal is not None:
        trial.reason = refusal
        return trial
    layers = _build(trial, calls, rules)
    if not layers:
        trial.reason = next((f"{name}: {why}" for name, why in trial.refused.items()), "no kernels to try")
        return trial
    times = rules.timer({name: _passes(layer, calls) for name, layer in {"dense": site.module, **layers}.items()})
    trial.dense_ms = 1e3 * median(times["dense"])
    trial.kernels_ms = {name: 1e3 * median(times[name]) for name in layers}
    trial.gains = {name: gain(times["dense"], times[name]) for name in layers}
    best = max(layers, key=lambda name: trial.gains[name])
    if trial.gains[best] >= 1.0 + rules.margin:
        trial.chosen, trial.layer = best, layers[best]
    else:
        trial.reason = f"the best kernel, {best}, is {trial.gains[best]:.2f} times as fast as dense"
    return trial


def _build(trial: Trial, calls: Calls, rules: Rules) -> dict[str, SparseLayer]:
    """The layer on each kernel that suits it and computes what the dense one does; why not, on the others."""
    matrix, layers = trial.site.matrix(), {}
    expected = [trial.site.module(x) for x in calls.inputs]
    for name in rules.kernels:
        refusal = KERNELS[name].refusal(matrix)
        if refusal is None:
            try:
                layer = trial.site.replaced(KERNELS[name].build(matrix))
                off = difference(expected, [layer(x) for x in calls.inputs])
            except (RuntimeError, ValueError) as error:  # torch has no such kernel for this device or shape
                refusal = str(error).partition("\n")[0]
            else:
                if off <= rules.tolerated(matrix.dtype):
                    layers[name] = layer
                else:
                    refusal = f"its outputs differ by {off:.2g} of their size"
        if refusal is not None:
            trial.refused[name] = refusal
    return layers


def _passes(layer: nn.Module, calls: Calls) -> Callable[[], object]:
    return lambda: [layer(x) for x in calls.inputs]


def difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest entry of its tensor; infinite where there are NaNs."""
    worst = 0.0
    for one, other in zip(expected, found):
        if not one.numel() or not one.is_floating_point():
            continue
        scale = max(float(one.abs().max()), torch.finfo(torch.float32).tiny)
        off = float((one - other).abs().max()) / scale
        worst = max(worst, off if off == off else float("inf"))
    return worst
