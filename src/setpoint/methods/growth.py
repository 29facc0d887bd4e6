"""What units begin with that have just grown: their weights, and what the optimizer knows of them."""

from __future__ import annotations

import torch
from torch import Tensor

from setpoint.functional.bits import Mask
from setpoint.functional.entries import zero_entries
from setpoint.moments import clear_state, mask_gradient, warm_second_moment
from setpoint.optimizer_set import OptimizerSet
from setpoint.units import Layer, Part


@torch.no_grad()
def plant(
    layer: Layer,
    grown: Mask,
    survivors: Mask,
    optimizers: OptimizerSet,
    generator: torch.Generator,
    *,
    random: bool,
    warm: bool,
) -> None:
    """Begin units anew, whatever was there before: weights of zero, or random ones, and no gradient and no momentum.

    Random weights are normal with the mean and the deviation of the survivors' entries in the same parameter. Where
    units cross layers, what makes their values is random in any case, and what reads them zero: with zeros on both
    sides a unit would get no gradient, ever, and with zeros on one the network still computes what it did.

    Args:
        layer: whose units.
        grown: which of them grow, shaped as the partition's counts.
        survivors: which others stay.
        optimizers: of the parameters.
        generator: of the random numbers.
        random: begin with random weights, rather than zeros.
        warm: begin with the mean second moment of the survivors (`setpoint.moments.warm_second_moment`).
    """
    crosses = any(part.reads for part in layer.parts)
    # What reads comes last: where one parameter makes the values of a group and reads them, the zeros are what counts.
    for part in sorted(layer.parts, key=lambda part: part.reads):
        new = _entries(part, grown)
        marks = Mask.of(new)
        zero_entries(part.parameter, marks)
        if (random or crosses) and not part.reads:
            _draw(part.parameter, new, _entries(part, survivors), generator)
        mask_gradient(part.parameter, marks)
        optimizer = optimizers.of(part.parameter)
        clear_state(optimizer, part.parameter, marks.view)
        if warm:
            warm_second_moment(optimizer, part.parameter, new, _entries(part, survivors))


def _entries(part: Part, units: Mask) -> Tensor:
    """Which entries of a parameter are those units'."""
    others = (~units.tensor()).to(part.parameter.device)
    return ~part.partition.expand(others, part.parameter.detach())


def _draw(parameter: Tensor, new: Tensor, old: Tensor, generator: torch.Generator) -> None:
    seen = parameter[old & (parameter != 0)].double()
    if seen.numel() == 0:
        return
    noise = torch.randn(parameter.shape, generator=generator, device=parameter.device)
    drawn = noise * seen.std(correction=0).float() + seen.mean().float()
    parameter.copy_(torch.where(new, drawn.to(parameter.dtype), parameter))
