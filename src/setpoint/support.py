"""The support of a run: which units stay, what is zero for it, and how that is held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from setpoint.functional.bits import pack_bits, unpack_bits
from setpoint.moments import clear_state, mask_copies, mask_gradient
from setpoint.units import Layer


class Support:
    """What is there and what is gone of the parameters of some layers.

    Args:
        layers: whose units come and go.

    Attributes:
        parameters: of the layers, by name.
        gone: by parameter, True where an entry is zero: fixed once frozen; before that, what a method holds at zero
            until its next update.
        kept: by layer, which units stay: once frozen, and of a method that is always sparse from the start; empty
            before they are known.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        self.parameters = {part.name: part.parameter for layer in layers for part in layer.parts}
        self.gone: dict[str, Tensor] = {}
        self.kept: list[Tensor] = []
        self._drawn_from: dict[str, Tensor] = {}

    @property
    def masks(self) -> dict[str, Tensor]:
        """By parameter, True where an entry is kept."""
        return {
            name: ~self.gone[name] if name in self.gone else torch.ones_like(parameter, dtype=torch.bool)
            for name, parameter in self.parameters.items()
        }

    def lose(self, factors: Mapping[int, Tensor]) -> None:
        """Let go of the units whose factor is zero, by the number of the layer, and of no others."""
        self.gone = {}
        for i, given in factors.items():
            for part, spread in self._layers[i].spread(given):
                entries = spread == 0
                # A parameter may lose some to several layers.
                self.gone[part.name] = self.gone[part.name] | entries if part.name in self.gone else entries

    def hold(self) -> None:
        """Bring back to zero what the optimizer moved."""
        for name, gone in self.gone.items():
            self.parameters[name].masked_fill_(gone, 0.0)

    def mask_gradients(self) -> None:
        """Zero the gradients of what is gone."""
        for name, gone in self.gone.items():
            mask_gradient(self.parameters[name], gone)

    def remember(self) -> None:
        """Note the parameters as they are before a first support is drawn."""
        self._drawn_from = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def forget(self) -> None:
        """Let go of what was noted: it has been trained since."""
        self._drawn_from = {}

    def undraw(self) -> None:
        """Put back the parameters that were noted, unless others have been loaded since.

        They may be those of a checkpoint whose support is about to be taken back, of which the first draw left a part.
        """
        for name, dense in self._drawn_from.items():
            parameter = self.parameters[name]
            if torch.equal(parameter, dense.masked_fill(self.gone[name], 0.0)):
                parameter.copy_(dense)
        self.forget()

    def clear_state(self, optimizer: Optimizer) -> None:
        """Zero what the optimizer remembers of what is gone."""
        for name, gone in self.gone.items():
            clear_state(optimizer, self.parameters[name], gone)

    def mask_copies(self, optimizer: Optimizer) -> None:
        """Zero what is gone in the copies of parameters that the optimizer keeps."""
        for name, gone in self.gone.items():
            mask_copies(optimizer, self.parameters[name], gone)

    def state_dict(self) -> dict[str, Any]:
        """A bit an entry, and a bit a unit."""
        return {
            "gone": {name: pack_bits(gone) for name, gone in self.gone.items()},
            "kept": [pack_bits(kept) for kept in self.kept],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state back; the parameters stay as they are."""
        self.gone = {
            name: unpack_bits(packed, self.parameters[name].shape).to(self.parameters[name].device)
            for name, packed in state["gone"].items()
        }
        self.kept = [
            unpack_bits(packed, layer.counts).to(layer.device) for packed, layer in zip(state["kept"], self._layers)
        ]
