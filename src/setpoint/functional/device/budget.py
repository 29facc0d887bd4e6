"""The largest of many magnitudes on a GPU, which is read once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from setpoint.functional.device import in_a_row, parted


def largest_on_device(magnitudes: Sequence[Tensor], count: int, floors: Sequence[int]) -> list[Tensor] | None:
    """Mark the `count` largest magnitudes, ties going to the earlier tensor and the lower index.

    Args:
        magnitudes: on one device.
        count: how many, above 0 and below all.
        floors: how many each tensor must keep at least.

    Returns:
        Boolean tensors; None where this way does not lead to them: magnitudes that are refused, or a cut that a floor
        forbids.
    """
    flat = in_a_row(magnitudes)
    least, most = torch.aminmax(flat)
    cut = _nth_largest(flat, count)
    above, ties = flat > cut, flat == cut
    marked = above | (ties & (ties.cumsum(0) <= count - above.sum()))
    parts = parted(marked, magnitudes)
    asked = [(part, min(floor, part.numel())) for part, floor in zip(parts, floors) if floor]
    enough = torch.stack([least >= 0, most.isfinite(), *(part.sum() >= floor for part, floor in asked)]).all()
    return parts if bool(enough) else None


def _nth_largest(values: Tensor, n: int) -> Tensor:
    # From whichever end is nearer.
    if 2 * n <= values.numel():
        return values.topk(n, sorted=False).values.min()
    return values.topk(values.numel() - n + 1, largest=False, sorted=False).values.max()
