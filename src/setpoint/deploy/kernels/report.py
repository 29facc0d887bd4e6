"""What was measured, and which kernels were chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LayerKernels:
    """One layer: what was tried, and what came of it.

    Attributes:
        name: of the module.
        shape: of its weight, as it is stored.
        density: fraction of the weight's entries that are not zero.
        chosen: the kernel it was given, or "dense".
        reason: why it stays dense; empty where it does not.
        dense_ms: median time of the dense layer on the inputs that it gets; None where nothing was timed.
        kernels_ms: by kernel, the same.
        gains: by kernel, how many times faster than dense: the median of paired ratios.
        refused: by kernel that was not timed, why not.
        dense_bytes: of the dense layer's weight and bias.
        bytes: of what stands in its place.
    """

    name: str
    shape: tuple[int, ...]
    density: float
    chosen: str
    reason: str
    dense_ms: float | None
    kernels_ms: Mapping[str, float]
    gains: Mapping[str, float]
    refused: Mapping[str, str]
    dense_bytes: int
    bytes: int


@dataclass(frozen=True)
class KernelReport:
    """A model whose layers were given the kernels that are fastest for them.

    Attributes:
        layers: all that have a weight, in the model's order.
        transposed: names of the swapped layers whose outputs stay transposed in memory, as the next ones take them.
        dense_ms: median time of a forward pass of the dense model; None where no layer had a faster kernel.
        ms: of the model that came back.
        gain: how many times faster it is: the median of paired ratios; 1 where it is the dense one.
        difference: largest difference of the outputs, relative to the largest output.
        dense_bytes: of the dense model's parameters and buffers.
        bytes: of those of the model that came back.
        device: that was measured on.
        threads: of the CPU that torch used.
        margin: by how much a kernel had to win.
    """

    layers: tuple[LayerKernels, ...]
    transposed: tuple[str, ...]
    dense_ms: float | None
    ms: float | None
    gain: float
    difference: float
    dense_bytes: int
    bytes: int
    device: str
    threads: int
    margin: float

    @property
    def swapped(self) -> tuple[str, ...]:
        """Names of the layers that got a sparse kernel."""
        return tuple(layer.name for layer in self.layers if layer.chosen != "dense")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"swapped": self.swapped}

    def __str__(self) -> str:
        kernels = list(dict.fromkeys(name for layer in self.layers for name in layer.kernels_ms))
        rows = [
            ("layer", "shape", "density", "dense ms", *(f"{name} ms" for name in kernels), "chosen", "gain", "bytes")
        ]
        rows += [_row(layer, kernels) for layer in self.layers]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [self._title()]
        lines += ["  ".join([r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:]))]) for r in rows]
        if self.transposed:
            lines.append(f"outputs stay transposed in memory after {', '.join(self.transposed)}")
        return "\n".join([*lines, *(f"{la.name} stays dense: {la.reason}" for la in self.layers if la.reason)])

    def _title(self) -> str:
        where = f"{self.device}, {self.threads} CPU threads"
        memory = f"{self.dense_bytes:,} bytes dense, {self.bytes:,} now"
        if self.dense_ms is None or self.ms is None:
            return f"no layer has a faster kernel on {where}; {memory}"
        times = f"{self.dense_ms:.3g} ms dense, {self.ms:.3g} ms now ({self.gain:.2f} times faster)"
        return f"{len(self.swapped)} of {len(self.layers)} layers swapped on {where}: {times}; {memory}"


def _row(layer: LayerKernels, kernels: list[str]) -> tuple[str, ...]:
    times = [layer.dense_ms, *(layer.kernels_ms.get(name) for name in kernels)]
    return (
        layer.name,
        "x".join(map(str, layer.shape)),
        f"{layer.density:.2%}",
        *("-" if ms is None else f"{ms:.3g}" for ms in times),
        layer.chosen,
        "-" if layer.chosen == "dense" else f"{layer.gains[layer.chosen]:.2f}x",
        f"{layer.bytes:,} / {layer.dense_bytes:,}",
    )
