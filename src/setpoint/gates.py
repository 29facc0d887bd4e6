"""Gates: numbers that multiply units in the forward pass, and are gone again when the support is fixed.

A gated module reads its parameter through an overlay (`setpoint.overlay`), which autograd, autocast and `torch.compile`
follow. The parameter itself stays where it was: the optimizer's own and the hooks' of data-parallel wrappers, with its
name and place in `parameters()` and `state_dict()`. (`torch.nn.utils.parametrize` moves it, and sets its storage anew,
by which DistributedDataParallel loses sight of it.)

A gate needs no gradient of its own: the loss sees `z w`, so `dL/dz = <dL/dw, w> / z` wherever z is not zero, and a
hard-concrete gate that is zero has derivative zero. What is learned from is therefore the parameters' gradients, as
accumulated, averaged over ranks, unscaled and clipped as they are when the optimizer steps.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from setpoint.norms import NormWatch
from setpoint.optimizer_set import OptimizerSet
from setpoint.overlay import Gate, Overlay, hang, is_gated, obstacle, plain_class, take_off
from setpoint.units import Layer, Layout, Partition, partition

# By parameter, the modules that hold it and its names there.
_Places = dict[nn.Parameter, list[tuple[nn.Module, str]]]


class UnitGates(Overlay):
    """Multiplies the units of one parameter: by sampled gates in training mode, by the gates of the test in evaluation.

    Quite open at first. Several may hang on a parameter, on entries of their own.
    """

    def __init__(self, name: str, units: Partition, like: Tensor) -> None:
        self.name, self.units = name, units
        self.sample = torch.ones((), device=like.device).expand(units.counts)
        self._test: Tensor | Callable[[], Tensor] = self.sample

    @property
    def gates(self) -> Mapping[str, Gate]:
        """Itself."""
        return {self.name: self}

    def __call__(self, weight: Tensor, training: bool) -> Tensor:
        """The gated tensor, of the same shape and dtype."""
        # What has another shape has been put in the parameter's place, and has no such units.
        if weight.shape != self.units.layout.shape:
            return weight
        gates = (self.sample if training else self.test).to(weight.device)
        return weight * self.units.expand(gates, weight.detach()).to(weight.dtype)

    @property
    def test(self) -> Tensor:
        """The gates of the test."""
        test = self._test if isinstance(self._test, Tensor) else self._test()
        return test.reshape(self.units.counts)

    def put(self, sample: Tensor, test: Tensor | Callable[[], Tensor], device: torch.device) -> None:
        """Set them, beside the parameter wherever that has gone."""
        self.sample = sample.reshape(self.units.counts).to(device)
        self._test = test.to(device) if isinstance(test, Tensor) else test


@dataclass(frozen=True, eq=False)
class Site:
    """A parameter that a layer's gates multiply: its name in the model, the module that reads it, and under which name,
    and how it falls into the layer's units.
    """

    called: str
    parameter: nn.Parameter
    units: Partition
    module: nn.Module
    name: str


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
        places = _places(model)
        self._sites = [_own_sites(places, layer) for layer in layers]
        self._watch = self._watching()
        self._by_site: dict[Site, UnitGates] = {}
        self._hung: list[tuple[nn.Module, Overlay]] = []
        # A run that nobody refers to any more takes its gates with it.
        weakref.finalize(self, _take_off, self._hung).atexit = False

    @property
    def attached(self) -> bool:
        """Whether the gates are on the model."""
        return bool(self._by_site)

    @property
    def norms(self) -> dict[str, str]:
        """By the names of layers, the batch norms that their gates are on."""
        names = {module: name for name, module in self._model.named_modules()}
        return {
            layer.name: names[sites[0].module]
            for layer, sites in zip(self._layers, self._sites)
            if layer.partition.whole_outputs and isinstance(sites[0].module, _BatchNorm) and sites[0].module in names
        }

    @norms.setter
    def norms(self, names: dict[str, str]) -> None:
        self.detach()
        if not names:
            self._watch = self._watching()  # they may not have been looked for yet
        places = _places(self._model)
        for i, layer in enumerate(self._layers):
            name = names.get(layer.name)
            self._sites[i] = _norm_sites(self._model.get_submodule(name)) if name else _own_sites(places, layer)

    def attach(self) -> None:
        """Hang the gates on the modules, quite open, behind the norms seen so far.

        Raises:
            ValueError: for a parameter that several modules have come to share.
        """
        places = _places(self._model)
        for index, norm in self._watch.found().items():
            if not is_gated(norm) and all(
                places.get(p) == [(norm, n)] for n, p in norm._parameters.items() if p is not None
            ):
                self._sites[index] = _norm_sites(norm)
        self._watch.remove()
        self._sites = [tuple(_followed(places, site) for site in sites) for sites in self._sites]
        sites = [site for sites in self._sites for site in sites]
        self._by_site = {site: UnitGates(site.name, site.units, site.parameter) for site in sites}
        self._hang([site for site in sites if site.parameter in places])

    def _hang(self, sites: Sequence[Site]) -> None:
        self._hung += [(site.module, self._by_site[site]) for site in sites]
        # A module may read what another one holds that it contains.
        mark = Overlay()
        self._hung += [(module, mark) for module in _containing(self._model, {site.module for site in sites})]
        for module, overlay in self._hung:
            hang(module, overlay)

    def detach(self) -> None:
        """Take the gates away, and look for norms no longer."""
        self._watch.remove()
        _take_off(self._hung)
        self._by_site = {}

    def put(self, index: int, sample: Tensor, test: Tensor | Callable[[], Tensor]) -> None:
        """Set one layer's gates, for training and for evaluation.

        Tensors are kept as they are, and not copied: the graph of a pass may be differentiated once more and holds
        them, so whoever gives them does not change them any more. Gates that cost less to compute than to keep are
        given as a function, which is called where they are looked at.
        """
        for site in self._sites[index]:
            self._by_site[site].put(sample, test, site.parameter.device)

    def open(self, index: int) -> Tensor:
        """Which of one layer's units pass in evaluation, flat."""
        return self._by_site[self._sites[index][0]].test.flatten().to(self._layers[index].device) > 0

    def samples(self, index: int) -> Tensor:
        """One layer's gates as the loss felt them, flat: the test's where the module is trained in evaluation mode."""
        site = self._sites[index][0]
        gates = self._by_site[site]
        return (gates.sample if site.module.training else gates.test).flatten().to(self._layers[index].device)

    def slopes(self, index: int, optimizers: OptimizerSet) -> Tensor:
        """Derivative of the loss by each of one layer's gates, flat and finite.

        It is 0 for gates that are zero, and where the gradient is not finite or the derivative larger than any number.
        """
        z = self.samples(index)
        trained = [site for site in self._sites[index] if site.parameter.grad is not None]
        if not trained:
            return torch.zeros_like(z)
        sums = [_product(site, optimizers).flatten().to(z.device) for site in trained]
        total = sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)
        return torch.where(z > 0, total / z, 0.0).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)

    def felt(self, indices: Sequence[int], optimizers: OptimizerSet) -> FeltGates:
        """How the loss felt the gates of some layers."""
        return FeltGates(self, indices, optimizers)

    def entries(self, index: int, optimizers: OptimizerSet) -> tuple[Tensor, Tensor, Tensor] | None:
        """One layer's weights, their gradients and the gates that were sampled for them, all of one shape.

        None where a unit is more than one weight, or where `slopes` has to look at more than these.
        """
        site, *more = self._sites[index]
        weight, grad = site.parameter.detach(), site.parameter.grad
        single = not more and site.units.entries(weight) is not None
        if not single or grad is None or grad.shape != weight.shape or not site.module.training:
            return None
        if getattr(optimizers.of(site.parameter), "grad_scale", None) is not None:
            return None
        return weight, grad, self._by_site[site].sample.reshape(weight.shape)

    def _watching(self) -> NormWatch:
        places = _places(self._model)
        whole = {i: layer for i, layer in enumerate(self._layers) if layer.partition.whole_outputs}
        return NormWatch(self._model, {i: _own_sites(places, layer)[0].module for i, layer in whole.items()})

    @torch.no_grad()
    def fold(self, index: int, factors: Tensor) -> None:
        """Multiply one layer's gated parameters by factors of the units, for good."""
        for site in self._sites[index]:
            parameter = site.parameter
            parameter.mul_(site.units.expand(factors.reshape(site.units.counts), parameter).to(parameter.dtype))


class FeltGates(Sequence[tuple[Tensor, Tensor]]):
    """How the loss felt the gates of some layers: for each its gates, and the derivative of the loss by them.

    They are computed when they are looked at, layer by layer, since all of them together may be as large as the model.
    """

    def __init__(self, gates: Gates, indices: Sequence[int], optimizers: OptimizerSet) -> None:
        self._gates, self._indices, self._optimizers = gates, indices, optimizers

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return FeltGates(self._gates, self._indices[position], self._optimizers)
        index = self._indices[position]
        counts = self._gates._layers[index].counts
        samples, slopes = self._gates.samples(index), self._gates.slopes(index, self._optimizers)
        return samples.reshape(counts), slopes.reshape(counts)

    def entries(self, position: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """From what single weights' slopes follow: see `Gates.entries`."""
        return self._gates.entries(self._indices[position], self._optimizers)


def _take_off(hung: list[tuple[nn.Module, Overlay]]) -> None:
    for module, overlay in hung:
        take_off(module, overlay)
    hung.clear()


def _product(site: Site, optimizers: OptimizerSet) -> Tensor:
    """Of each unit, the inner product of the gradient and the parameter."""
    weight, grad = site.parameter.detach(), site.parameter.grad
    assert grad is not None
    exact = torch.promote_types(weight.dtype, torch.float32)
    grad = grad.to_dense() if grad.is_sparse else grad
    sums = site.units.sums(grad.to(exact) * weight.to(exact), weight)
    # A fused optimizer takes the scale of a gradient scaler off within its step.
    scale = getattr(optimizers.of(site.parameter), "grad_scale", None)
    return sums if scale is None else sums / scale.to(sums.device)


def _places(model: nn.Module) -> _Places:
    places: _Places = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(parameter, []).append((module, name))
    return places


def _containing(model: nn.Module, modules: set[nn.Module]) -> list[nn.Module]:
    """All modules of a model that contain one of these, and that something can hang on."""
    names = dict(model.named_modules(remove_duplicate=False))
    paths = [name.split(".") for name, module in names.items() if module in modules]
    above = {names[".".join(path[:i])]: None for path in paths for i in range(len(path))}
    return [module for module in above if obstacle(module) is None]


def _own_sites(places: _Places, layer: Layer) -> tuple[Site, ...]:
    readers = [part for part in layer.parts if part.reads]
    if not readers and len(layer.parts) > 1:
        raise ValueError(f"nothing reads the units of {layer.name!r}, so there is nowhere to put a gate; exclude it")
    return tuple(_site(places, part.name, part.parameter, part.partition) for part in readers or layer.parts[:1])


def _site(places: _Places, called: str, parameter: nn.Parameter, units: Partition) -> Site:
    found = places.get(parameter, [])
    if len(found) > 1:
        owners = ", ".join(plain_class(module).__name__ for module, _ in found)
        raise ValueError(
            f"parameter {called!r} is shared by {len(found)} modules ({owners}): a gate on it would act on all of "
            "them; leave it out by exclude=, or take a method without gates"
        )
    (module, name), *_ = found
    reason = (
        f"{plain_class(module).__name__} hands it to its kernel directly"
        if isinstance(module, nn.RNNBase)
        else obstacle(module)
    )
    if reason is not None:
        raise ValueError(
            f"parameter {called!r} cannot be gated: {reason}; leave it out by exclude=, or take a method without gates"
        )
    return Site(called, parameter, units, module, name)


def _followed(places: _Places, site: Site) -> Site:
    """The site where its parameter is now."""
    if site.parameter in places:
        return _site(places, site.called, site.parameter, site.units)
    warnings.warn(
        f"parameter {site.called!r} is no longer in the model, so that its gates act on nothing: change a model before "
        "its sparsifier is constructed",
        stacklevel=2,
    )
    return site


def _norm_sites(norm: nn.Module) -> tuple[Site, ...]:
    """Scale and shift, one unit a channel."""
    units = partition("weight", Layout((norm.num_features,)))  # type: ignore[arg-type]
    assert units is not None
    return tuple(
        Site(f"{kind} of a batch norm", norm.get_parameter(kind), units, norm, kind) for kind in ("weight", "bias")
    )
