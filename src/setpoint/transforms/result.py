"""What a transformation came to: the model, what to hand to a sparsifier, and what it all costs."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from setpoint.budget import Target


@dataclass(frozen=True)
class SparseLayer:
    """A weight that is to be sparse.

    Attributes:
        name: of the parameter.
        shape: of it.
        entries: how many it has.
        kept: how many may stay.
        flops_per_entry: operations of a forward pass on the example inputs that one entry takes part in.
    """

    name: str
    shape: tuple[int, ...]
    entries: int
    kept: int
    flops_per_entry: int

    @property
    def sparsity(self) -> float:
        """Fraction of the entries that are to be zero."""
        return 1.0 - self.kept / self.entries

    @property
    def flops(self) -> int:
        """Operations of the entries that stay."""
        return self.kept * self.flops_per_entry


@dataclass(frozen=True, eq=False)
class SparseIFT:
    """A model that is to be made sparse so that it costs what its dense twin costs.

    Operations are those of one forward pass on the example inputs as `torch.utils.flop_counter` counts them, a
    multiplication and an addition counting two, and zero weights none.

    Attributes:
        kind: wide, parallel, factorized or doped.
        sparsity: that was asked for, from which the sizes follow.
        model: to be trained, an ordinary module.
        layers: the weights that are to be sparse.
        left_dense: other weights that take part in products, and why they stay dense.
        dense_flops: operations of the dense twin.
        fixed_flops: operations of the model that are not those of sparse weights.
        dense_parameters: entries of all the dense twin's parameters.
        parameters: entries of all the model's parameters, as they are stored.
        rates: by the names of weights, what Adam's learning rate is multiplied by so that an output moves as far in a
            step as the dense layer's does (`setpoint.transforms.variance`); those that are not named keep theirs, the
            two of a product among them.
    """

    kind: str
    sparsity: float
    model: nn.Module
    layers: tuple[SparseLayer, ...]
    left_dense: Mapping[str, str]
    dense_flops: int
    fixed_flops: int
    dense_parameters: int
    parameters: int
    rates: Mapping[str, float] = field(default_factory=dict)

    def parameter_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """The model's parameters for Adam, AdamW and their like, with the learning rates of `rates`.

        For optimizers whose step has the size of the learning rate, whatever the gradient's is. What a step takes off
        a weight by `weight_decay` stays the same, as in AdamW it is multiplied by the learning rate.

        Args:
            lr: of the dense model.
            weight_decay: likewise; of tensors of two and more dimensions, none for biases and norms.

        Returns:
            Groups to build the optimizer with.
        """
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            factor = self.rates.get(name, 1.0)
            decay = weight_decay / factor if parameter.ndim >= 2 else 0.0
            groups.setdefault((lr * factor, decay), []).append(parameter)
        return [{"params": own, "lr": rate, "weight_decay": decay} for (rate, decay), own in groups.items()]

    @property
    def target(self) -> Target:
        """What to hand to a sparsifier: the fraction of all sparse weights' entries that goes."""
        kept, entries = sum(la.kept for la in self.layers), sum(la.entries for la in self.layers)
        return Target(sparsity=1.0 - kept / entries)

    @property
    def scope(self) -> dict[str, float]:
        """What to hand to a sparsifier: the fraction of each weight that goes, which rounds to its whole number."""
        return {name: layer.sparsity for name, layer in zip(self.include, self.layers)}

    @property
    def include(self) -> tuple[str, ...]:
        """What to hand to a sparsifier: the weights that are to be sparse, as patterns that fit them alone."""
        return tuple(glob.escape(layer.name) for layer in self.layers)

    @property
    def flops(self) -> int:
        """Operations of the model once it is sparse."""
        return self.fixed_flops + sum(layer.flops for layer in self.layers)

    @property
    def stored_flops(self) -> int:
        """Operations that dense kernels make of it, which multiply with zeros as well."""
        return self.fixed_flops + sum(layer.entries * layer.flops_per_entry for layer in self.layers)

    @property
    def parameters_kept(self) -> int:
        """Entries of all parameters that may be other than zero."""
        return self.parameters - sum(layer.entries - layer.kept for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        names = ("kind", "sparsity", "dense_flops", "dense_parameters", "parameters")
        counted = {name: getattr(self, name) for name in (*names, "flops", "stored_flops", "parameters_kept")}
        return counted | {"layers": [asdict(layer) for layer in self.layers], "left_dense": dict(self.left_dense)}

    def __str__(self) -> str:
        rows = [("layer", "shape", "weights kept", "zeros", "FLOPs")]
        for la in self.layers:
            shape = "x".join(map(str, la.shape))
            rows.append((la.name, shape, f"{la.kept:,} / {la.entries:,}", f"{la.sparsity:.2%}", f"{la.flops:,}"))
        kept, entries = sum(la.kept for la in self.layers), sum(la.entries for la in self.layers)
        flops = self.flops - self.fixed_flops
        rows.append(("sparse", "", f"{kept:,} / {entries:,}", f"{1 - kept / entries:.2%}", f"{flops:,}"))
        rows.append(("dense", "", "", "", f"{self.fixed_flops:,}"))
        rows.append(("all", "", "", "", f"{self.flops:,}"))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [f"sparse {self.kind} for a sparsity of {self.sparsity:g}"]
        lines += ["  ".join([r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:]))]) for r in rows]
        lines += [
            f"FLOPs: {self.flops:,}, of the dense model {self.dense_flops:,} ({self.flops / self.dense_flops:.4%})",
            f"FLOPs of dense kernels, which multiply with zeros: {self.stored_flops:,} "
            f"({self.stored_flops / self.dense_flops:.2f}x)",
            f"parameters: {self.parameters:,} stored ({self.parameters / self.dense_parameters:.2f}x), "
            f"{self.parameters_kept:,} kept, of the dense model {self.dense_parameters:,}",
        ]
        return "\n".join([*lines, *(f"stays dense: {name}, {why}" for name, why in self.left_dense.items())])
