"""Gates: numbers that multiply units in the forward pass, and are gone again when the support is fixed.

They hang on the modules as parametrizations, which autograd, autocast and `torch.compile` follow, while the parameters
stay the optimizer's own and keep their names in `state_dict()`. A gate needs no gradient of its own: the loss sees
`z w`, so `dL/dz = <dL/dw, w> / z` wherever z is not zero, and a hard-concrete gate that is zero has derivative zero.
What is learned from is therefore the parameters' gradients, as accumulated, averaged over ranks, unscaled and clipped
as they are when the optimizer steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from setpoint.norms import NormWatch
from setpoint.units import Layer, Layout, Partition, partition


class UnitGates(nn.Module):
    """Multiplies the units of one tensor: by sampled gates in training mode, by the gates of the test in evaluation."""

    sample: Tensor
    test: Tensor

    def __init__(self, units: Partition, like: Tensor) -> None:
        super().__init__()
        self.units = units
        for name in ("sample", "test"):
            self.register_buffer(name, torch.ones(units.counts, device=like.device), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The gated tensor, of the same shape and dtype."""
        gates = self.sample if self.training else self.test
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
        if parametrize.is_parametrized(self.module, self.name):
            found: Any = self._parametrizations.original
        else:
            found = getattr(self.module, self.name)
        assert isinstance(found, nn.Parameter)
        return found

    @property
    def gates(self) -> UnitGates:
        """What hangs on the parameter."""
        found = self._parametrizations[-1]
        assert isinstance(found, UnitGates)
        return found

    @property
    def _parametrizations(self) -> ParametrizationList:
        lists = self.module.parametrizations
        assert isinstance(lists, nn.ModuleDict)
        found = lists[self.name]
        assert isinstance(found, ParametrizationList)
        return found


class Gates:
    """The gates of a run, layer by layer.

    Gates multiply the layer's parameter itself; where a unit is a whole output and a batch norm follows the layer, they
    multiply that norm's scale and shift instead. In front of the norm their effect would be divided out again.

    Args:
        model: that holds the parameters.
        layers: whose units are gated.

    Raises:
        ValueError: for a parameter that several modules share, or that its module does not read as an attribute.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        self._model, self._layers = model, layers
        self._sites: list[tuple[Site, ...]] = [(_own_site(model, layer),) for layer in layers]
        self._watch = self._watching()
        self._handles: list[RemovableHandle] = []
        self._orders: dict[nn.Module, list[str]] = {}

    @property
    def attached(self) -> bool:
        """Whether the gates are on the model."""
        return bool(self._handles)

    @property
    def norms(self) -> dict[str, str]:
        """By the names of layers, the batch norms that their gates are on."""
        names = {module: name for name, module in self._model.named_modules()}
        return {
            layer.name: names[sites[0].module]
            for layer, sites in zip(self._layers, self._sites)
            if isinstance(sites[0].module, _BatchNorm)
        }

    @norms.setter
    def norms(self, names: dict[str, str]) -> None:
        self.detach()
        if not names:
            self._watch = self._watching()  # they may not have been looked for yet
        for i, layer in enumerate(self._layers):
            name = names.get(layer.name)
            self._sites[i] = _norm_sites(self._model.get_submodule(name)) if name else (_own_site(self._model, layer),)

    def attach(self) -> None:
        """Hang the gates on the modules, quite open, behind the norms seen so far."""
        for index, norm in self._watch.found().items():
            self._sites[index] = _norm_sites(norm)
        self._watch.remove()
        for site in (s for sites in self._sites for s in sites):
            self._orders.setdefault(site.module, list(site.module._parameters))
            parametrize.register_parametrization(site.module, site.name, UnitGates(site.units, site.parameter))
            site.gates.train(site.module.training)
            self._handles += _plain_names(site.module, site.name)

    def detach(self) -> None:
        """Take the gates away, and look for norms no longer; the parameters are the same objects, in the same order."""
        self._watch.remove()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for site in (s for sites in self._sites for s in sites):
            if parametrize.is_parametrized(site.module, site.name):
                parametrize.remove_parametrizations(site.module, site.name, leave_parametrized=False)
        for module, names in self._orders.items():
            for name in names:
                module._parameters[name] = module._parameters.pop(name)
        self._orders.clear()

    def put(self, index: int, sample: Tensor, test: Tensor) -> None:
        """Set one layer's gates, for training and for evaluation."""
        for site in self._sites[index]:
            site.gates.sample.copy_(sample.reshape(site.units.counts))
            site.gates.test.copy_(test.reshape(site.units.counts))

    def open(self, index: int) -> Tensor:
        """Which of one layer's units pass in evaluation, flat."""
        return self._sites[index][0].gates.test.flatten() > 0

    def samples(self, index: int) -> Tensor:
        """One layer's gates as the loss felt them, flat: the test's where the module is trained in evaluation mode."""
        gates = self._sites[index][0].gates
        return (gates.sample if gates.training else gates.test).flatten()

    def slopes(self, index: int, optimizer: Optimizer) -> Tensor:
        """Derivative of the loss by each of one layer's gates, flat; 0 for gates that are zero."""
        z = self.samples(index)
        total = torch.zeros_like(z)
        for site in self._sites[index]:
            parameter = site.parameter
            if parameter.grad is not None:
                weight = parameter.detach()
                total += site.units.sums(parameter.grad.float() * weight.float(), weight).flatten()
        # A fused optimizer takes the scale of a gradient scaler off within its step.
        scale = getattr(optimizer, "grad_scale", None)
        total = total if scale is None else total / scale
        return torch.where(z > 0, total / z.masked_fill(z == 0, 1.0), 0.0)

    def _watching(self) -> NormWatch:
        whole = [i for i, layer in enumerate(self._layers) if layer.partition.whole_outputs]
        return NormWatch(self._model, {i: _own_site(self._model, self._layers[i]).module for i in whole})

    @torch.no_grad()
    def fold(self, index: int, factors: Tensor) -> None:
        """Multiply one layer's gated parameters by factors of the units, for good."""
        for site in self._sites[index]:
            parameter = site.parameter
            parameter.mul_(site.units.expand(factors.reshape(site.units.counts), parameter).to(parameter.dtype))


def _own_site(model: nn.Module, layer: Layer) -> Site:
    places = [(m, key) for m in model.modules() for key, p in m._parameters.items() if p is layer.parameter]
    if len(places) > 1:
        owners = ", ".join(type(module).__name__ for module, _ in places)
        raise ValueError(
            f"parameter {layer.name!r} is shared by {len(places)} modules ({owners}): a gate on it would act on all of "
            "them; leave it out by exclude=, or take a method without gates"
        )
    module, key = places[0]
    if isinstance(module, nn.RNNBase):
        raise ValueError(
            f"parameter {layer.name!r} is handed by {type(module).__name__} to its kernel directly, so it cannot be "
            "gated; leave it out by exclude=, or take a method without gates"
        )
    return Site(module, key, layer.partition)


def _norm_sites(norm: nn.Module) -> tuple[Site, ...]:
    """Scale and shift, one unit a channel."""
    units = partition("weight", Layout((norm.num_features,)))  # type: ignore[arg-type]
    assert units is not None
    return Site(norm, "weight", units), Site(norm, "bias", units)


def _plain_names(module: nn.Module, name: str) -> list[RemovableHandle]:
    """Keep the parameter's own name in the state dict, so that it loads with gates and without."""
    hidden = f"parametrizations.{name}.original"

    def saving(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        state[prefix + name] = state.pop(prefix + hidden)

    def loading(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
        if prefix + name in state:
            state[prefix + hidden] = state.pop(prefix + name)

    return [
        module.register_state_dict_post_hook(saving),  # type: ignore[no-untyped-call]
        module.register_load_state_dict_pre_hook(loading),  # type: ignore[no-untyped-call]
    ]
