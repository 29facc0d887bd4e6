"""What a model is called with, in words."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor

_SEED = 0


@dataclass(frozen=True)
class Example:
    """Shapes and dtypes of the tensors that a model takes, without the batch dimension.

    Attributes:
        tensors: of each argument, its shape and dtype.
    """

    tensors: tuple[tuple[tuple[int, ...], torch.dtype], ...]

    @classmethod
    def parse(cls, text: str) -> Example:
        """Read `3x32x32`, `128:int64` or, for several arguments, `128:int64,128:int64`.

        Also a list in JSON, the shape of a data set's examples: of tokens where it is a single number.

        Raises:
            ValueError: for anything else.
        """
        words = text
        if text.startswith("["):
            sizes = json.loads(text)
            words = "x".join(map(str, sizes)) + (":int64" if len(sizes) == 1 else "")
        try:
            return cls(tuple(_tensor(word.strip()) for word in words.split(",")))
        except (ValueError, AttributeError) as error:
            raise ValueError(f"shape={text!r} is no shape such as 3x32x32, or 128:int64 for whole numbers") from error

    def __str__(self) -> str:
        return ",".join(_words(shape, dtype) for shape, dtype in self.tensors)

    def batch(self, size: int) -> tuple[Tensor, ...]:
        """Arguments of that batch size: normal deviates, and whole numbers that are 0 or 1; always the same ones."""
        generator = torch.Generator().manual_seed(_SEED)
        return tuple(
            torch.randn(size, *shape, generator=generator).to(dtype)
            if dtype.is_floating_point
            else torch.randint(2, (size, *shape), generator=generator).to(dtype)
            for shape, dtype in self.tensors
        )

    def one(self) -> tuple[Tensor, ...]:
        """Arguments without the batch dimension."""
        return tuple(tensor[0] for tensor in self.batch(1))


def _tensor(word: str) -> tuple[tuple[int, ...], torch.dtype]:
    sizes, _, name = word.partition(":")
    shape, dtype = tuple(int(size) for size in sizes.split("x")), getattr(torch, name or "float32")
    if min(shape) < 1 or not isinstance(dtype, torch.dtype):
        raise ValueError(word)
    return shape, dtype


def _words(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    sizes = "x".join(map(str, shape))
    return sizes if dtype is torch.float32 else f"{sizes}:{str(dtype).removeprefix('torch.')}"
