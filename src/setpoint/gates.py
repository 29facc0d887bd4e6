"""Gates: numbers that multiply units in the forward pass, and are gone again when the support is fixed.

A gated module reads its parameter through a property, which autograd, autocast and `torch.compile` follow. The
parameter itself stays where it was: the optimizer's own and the hooks' of data-parallel wrappers, with its name and
place in `parameters()` and `state_dict()`. (`torch.nn.utils.parametrize` moves it, and sets its storage anew, by which
DistributedDataParallel loses sight of it.)

A gate needs no gradient of its own: the loss sees `z w`, so `dL/dz = <dL/dw, w> / z` wherever z is not zero, and a
hard-concrete gate that is zero has derivative zero. What is learned from is therefore the parameters' gradients, as
accumulated, averaged over ranks, unscaled and clipped as they are when the optimizer steps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from setpoint.norms import NormWatch
from setpoint.units import Layer, Layout, Part, Partition, partition

# Under this name a module holds its gates, by the names of the parameters that they multiply.
_HELD = "setpoint_gates"


class UnitGates:
    """Multiplies the units of one tensor: by sampled gates in training mode, by the gates of the test in evaluation.

    No module, and its tensors no buffers, so that whoever walks through the model's meets what was there before.
    """

    def __init__(self, units: Partition, like: Tensor) -> None:
        self.units = units
        self.sample, self.test = (torch.ones(units.counts, device=like.device) for _ in range(2))

    def __call__(self, weight: Tensor, training: bool) -> Tensor:
        """The gated tensor, of the same shape and dtype."""
        gates = (self.sample if training else self.test).to(weight.device)
        return weight * self.units.expand(gates, weight.detach()).to(weight.dtype)


@dataclass(frozen=True, eq=False)
class Site:
    """A parameter of a module that a layer's gates multiply, and how it falls into the layer's units."""

    module: nn.Module
    name: str
    units: Partition

    @property
    def parameter(self) -> nn.Parameter:
        """As it is without gates."""
        found = self.module._parameters[self.name]
        assert found is not None
        return found

    def attach(self) -> UnitGates:
        """Hang gates on the parameter, quite open; several may hang there, on entries of their own."""
        gates, held = UnitGates(self.units, self.parameter), _gates_of(self.module)
        _hang(self.module, {**held, self.name: (*held.get(self.name, ()), gates)})
        return gates


def _gates_of(module: nn.Module) -> dict[str, tuple[UnitGates, ...]]:
    held: dict[str, tuple[UnitGates, ...]] = vars(module).get(_HELD, {})
    return held


def _hang(module: nn.Module, gates: dict[str, tuple[UnitGates, ...]]) -> None:
    """Have a module read those of its parameters that have gates through them."""
    gates = {name: hung for name, hung in gates.items() if hung}
    plain = type(module).__bases__[0] if _gates_of(module) else type(module)
    if gates:
        vars(module)[_HELD] = gates
    else:
        vars(module).pop(_HELD, None)
    module.__class__ = _reading_through_gates(plain, tuple(sorted(gates))) if gates else plain


@cache
def _reading_through_gates(plain: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    return type(f"Gated{plain.__name__}", (plain,), {name: property(_reader(name)) for name in names})


def _reader(name: str) -> Callable[[nn.Module], Any]:
    def read(module: nn.Module) -> Any:
        tensor: Any = module._parameters[name]
        for gates in _gates_of(module)[name]:
            tensor = gates(tensor, module.training)
        return tensor

    return read


class Gates:
    """The gates of a run, layer by layer.

    Gates multiply the layer's parameter itself; where a unit is a whole output and a batch norm follows the layer, they
    multiply that norm's scale and shift instead. In front of the norm their effect would be divided out again. Of units
    that cross layers they multiply what reads them, which is behind every norm, and of branches their last maps.

    Args:
        model: that holds the parameters.
        layers: whose units are gated.

    Raises:
        ValueError: for a parameter that several modules share, or that its module does not read as an attribute.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        self._model, self._layers = model, layers
        self._sites = [_own_sites(model, layer) for layer in layers]
        self._watch = self._watching()
        self._hung: list[tuple[Site, UnitGates]] = []
        self._by_site: dict[Site, UnitGates] = {}
        # A run that nobody refers to any more takes its gates with it.
        weakref.finalize(self, _take_off, self._hung).atexit = False

    @property
    def attached(self) -> bool:
        """Whether the gates are on the model."""
        return bool(self._hung)

    @property
    def norms(self) -> dict[str, str]:
        """By the names of layers, the batch norms that their gates are on."""
        names = {module: name for name, module in self._model.named_modules()}
        return {
            layer.name: names[sites[0].module]
            for layer, sites in zip(self._layers, self._sites)
            if layer.partition.whole_outputs and isinstance(sites[0].module, _BatchNorm)
        }

    @norms.setter
    def norms(self, names: dict[str, str]) -> None:
        self.detach()
        if not names:
            self._watch = self._watching()  # they may not have been looked for yet
        for i, layer in enumerate(self._layers):
            name = names.get(layer.name)
            self._sites[i] = _norm_sites(self._model.get_submodule(name)) if name else _own_sites(self._model, layer)

    def attach(self) -> None:
        """Hang the gates on the modules, quite open, behind the norms seen so far."""
        for index, norm in self._watch.found().items():
            if not _gates_of(norm):
                self._sites[index] = _norm_sites(norm)
        self._watch.remove()
        self._hung += [(site, site.attach()) for sites in self._sites for site in sites]
        self._by_site = dict(self._hung)

    def detach(self) -> None:
        """Take the gates away, and look for norms no longer."""
        self._watch.remove()
        _take_off(self._hung)
        self._by_site = {}

    def put(self, index: int, sample: Tensor, test: Tensor) -> None:
        """Set one layer's gates, for training and for evaluation."""
        for site in self._sites[index]:
            gates = self._by_site[site]
            # New tensors: the graph of the last pass may be differentiated once more, and holds the old ones.
            gates.sample = sample.reshape(site.units.counts).to(gates.sample, copy=True)
            gates.test = test.reshape(site.units.counts).to(gates.test, copy=True)

    def open(self, index: int) -> Tensor:
        """Which of one layer's units pass in evaluation, flat."""
        return self._by_site[self._sites[index][0]].test.flatten() > 0

    def samples(self, index: int) -> Tensor:
        """One layer's gates as the loss felt them, flat: the test's where the module is trained in evaluation mode."""
        site = self._sites[index][0]
        gates = self._by_site[site]
        return (gates.sample if site.module.training else gates.test).flatten()

    def slopes(self, index: int, optimizer: Optimizer) -> Tensor:
        """Derivative of the loss by each of one layer's gates, flat; 0 for gates that are zero."""
        z = self.samples(index)
        felt = [(site.units, site.parameter.detach(), site.parameter.grad) for site in self._sites[index]]
        sums = [units.sums(grad.float() * weight.float(), weight) for units, weight, grad in felt if grad is not None]
        if not sums:
            return torch.zeros_like(z)
        total = sums[0].flatten() if len(sums) == 1 else torch.stack([s.flatten() for s in sums]).sum(0)
        # A fused optimizer takes the scale of a gradient scaler off within its step.
        scale = getattr(optimizer, "grad_scale", None)
        total = total if scale is None else total / scale
        return torch.where(z > 0, total / z, 0.0)

    def _watching(self) -> NormWatch:
        whole = [i for i, layer in enumerate(self._layers) if layer.partition.whole_outputs]
        return NormWatch(self._model, {i: _own_sites(self._model, self._layers[i])[0].module for i in whole})

    @torch.no_grad()
    def fold(self, index: int, factors: Tensor) -> None:
        """Multiply one layer's gated parameters by factors of the units, for good."""
        for site in self._sites[index]:
            parameter = site.parameter
            parameter.mul_(site.units.expand(factors.reshape(site.units.counts), parameter).to(parameter.dtype))


def _take_off(hung: list[tuple[Site, UnitGates]]) -> None:
    for site, gates in hung:
        held = _gates_of(site.module)
        if any(g is gates for g in held.get(site.name, ())):
            _hang(site.module, {**held, site.name: tuple(g for g in held[site.name] if g is not gates)})
    hung.clear()


def _own_sites(model: nn.Module, layer: Layer) -> tuple[Site, ...]:
    readers = tuple(_site(model, layer, part) for part in layer.parts if part.reads)
    if not readers and len(layer.parts) > 1:
        raise ValueError(f"nothing reads the units of {layer.name!r}, so there is nowhere to put a gate; exclude it")
    return readers or (_site(model, layer, layer.parts[0]),)


def _site(model: nn.Module, layer: Layer, part: Part) -> Site:
    parameter = part.parameter
    places = [(m, key) for m in model.modules() for key, p in m._parameters.items() if p is parameter]
    if len(places) > 1:
        owners = ", ".join(type(module).__name__ for module, _ in places)
        raise ValueError(
            f"parameter {part.name!r} is shared by {len(places)} modules ({owners}): a gate on it would act on all of "
            "them; leave it out by exclude=, or take a method without gates"
        )
    module, key = places[0]
    if isinstance(module, nn.RNNBase):
        raise ValueError(
            f"parameter {part.name!r} is handed by {type(module).__name__} to its kernel directly, so it cannot be "
            "gated; leave it out by exclude=, or take a method without gates"
        )
    return Site(module, key, part.partition)


def _norm_sites(norm: nn.Module) -> tuple[Site, ...]:
    """Scale and shift, one unit a channel."""
    units = partition("weight", Layout((norm.num_features,)))  # type: ignore[arg-type]
    assert units is not None
    return Site(norm, "weight", units), Site(norm, "bias", units)
