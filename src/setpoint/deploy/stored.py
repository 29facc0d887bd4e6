"""Which of a file's tensors are which of a model's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from setpoint.deploy.index import memory, unstorable
from setpoint.deploy.names import ObstacleError


class Stored:
    """Names of the tensors in a file.

    Args:
        state: the model's state dict, which is stored.

    Attributes:
        extras: what has to be stored beside it, by name.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.extras: dict[str, Tensor] = {}
        self._taken = set(state)
        self._names = {memory(state[name]): name for name in reversed(list(state))}
        self._spans: dict[int, dict[tuple[int, int], tuple[object, str]]] = {}

    def name_of(self, tensor: Tensor, path: str) -> str:
        """Under which name a tensor's entries are stored.

        Raises:
            ObstacleError: If they cannot be, or belong to another tensor in part.
        """
        reason = unstorable(tensor)
        if reason is not None:
            raise ObstacleError(f"it is {reason}")
        self._occupy(tensor, path)
        key = memory(tensor)
        if key not in self._names:
            while path in self._taken:
                path += "_"
            self._taken.add(path)
            self._names[key], self.extras[path] = path, tensor
        return self._names[key]

    def _occupy(self, tensor: Tensor, path: str) -> None:
        if not tensor.numel():
            return
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride())) + 1
        begin, end = tensor.data_ptr(), tensor.data_ptr() + reach * tensor.element_size()
        spans = self._spans.setdefault(tensor.untyped_storage().data_ptr(), {})
        for (other_begin, other_end), (key, other) in spans.items():
            if begin < other_end and other_begin < end and key != memory(tensor):
                raise ObstacleError(f"it is another view of the memory of {other!r}")
        spans[begin, end] = memory(tensor), path
