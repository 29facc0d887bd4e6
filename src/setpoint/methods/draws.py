"""Random numbers that are a pure function of where they are drawn."""

from __future__ import annotations

import zlib

import torch


def seeded(device: torch.device, seed: int, step: int, name: str) -> torch.Generator:
    """A generator that depends on the seed, the step and the name alone.

    So all ranks draw the same, a resumed run draws what an uninterrupted one does, and torch's own generators are not
    touched. CPU and CUDA draw different numbers.
    """
    generator = torch.Generator(device)
    generator.manual_seed(zlib.crc32(f"{seed} {step} {name}".encode()))
    return generator
