"""Seeds that follow from what they are for, so that no draw depends on the draws before it."""

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """Hash a description of a draw to a 32-bit seed.

    PyTorch's CPU generator uses 32 bits of its seed; neighbouring seeds such as ``seed + epoch`` would collide between
    runs (seed 0, epoch 1 and seed 1, epoch 0), hashed ones practically do not.

    Args:
        *parts: What the draw is for, e.g. ``("order", seed, epoch)``.

    Returns:
        A seed in ``0 .. 2**32 - 1``, the same on every machine and in every process.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def derive_generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded with :func:`derive_seed` of the same parts."""
    return torch.Generator().manual_seed(derive_seed(*parts))
