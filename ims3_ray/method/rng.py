"""Randomness that belongs to the sample: every draw has a key, never a worker, a batch or a position in time.

A key is a tuple of integers and strings, such as ("sample", seed, class, subgroup, index). Draws are made on
the CPU, so that the same key gives the same numbers whatever the device.
"""

import torch
from torch import Tensor

from .seeding import key_seed


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator of its own for `key`."""
    return torch.Generator().manual_seed(key_seed(*key))


def normal(generators: list[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise (len(generators), *shape) in float32, row i drawn from generator i alone."""
    return torch.stack([torch.randn(shape, generator=g) for g in generators])
