"""The optimizers that train one model: some recipes give the matrices to one of them and the rest to another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


class OptimizerSet:
    """One or more optimizers, looked up by the parameter that they train.

    Args:
        optimizers: which hold different parameters.

    Raises:
        ValueError: if there are none, or if two of them hold the same parameter.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        if not optimizers:
            raise ValueError("optimizer=[] holds no optimizer: give the one that trains the model, or all that do")
        if len({id(optimizer) for optimizer in optimizers}) < len(optimizers):
            raise ValueError("the same optimizer is given twice: name each once")
        self._optimizers = tuple(optimizers)
        # By the id of a parameter, itself and who trains it. Held as firmly as the optimizer holds it:
        # torch.utils.swap_tensors refuses parameters that are referred to weakly.
        self._by_parameter: dict[int, tuple[Tensor, Optimizer]] = {}
        for optimizer in self._optimizers:
            for parameter in _parameters(optimizer):
                if id(parameter) in self._by_parameter:
                    raise ValueError(
                        f"a parameter of shape {tuple(parameter.shape)} is held by two of the optimizers: each "
                        "parameter may be trained by one"
                    )
            self._look(optimizer)

    def __iter__(self) -> Iterator[Optimizer]:
        return iter(self._optimizers)

    def __len__(self) -> int:
        return len(self._optimizers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all optimizers, one after another."""
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def of(self, parameter: Tensor) -> Optimizer:
        """The optimizer that trains a parameter.

        Raises:
            KeyError: if none of them does.
        """
        if id(parameter) not in self._by_parameter:
            # It may have joined by `add_param_group`.
            for optimizer in self._optimizers:
                self._look(optimizer)
        return self._by_parameter[id(parameter)][1]

    def _look(self, optimizer: Optimizer) -> None:
        for parameter in _parameters(optimizer):
            self._by_parameter[id(parameter)] = (parameter, optimizer)


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
