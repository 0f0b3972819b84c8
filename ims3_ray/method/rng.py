"""Randomness that belongs to the sample: every draw has a key, never a worker, a batch or a position in time.

A key is a tuple of integers and strings, such as ("sample", seed, class, subgroup, index). Draws are made on the CPU,
so that the same key gives the same numbers whatever the device.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor


def key_seed(*key: int | str) -> int:
    """A 63-bit seed for `key`: BLAKE2b of its parts, each with its type and length, so that no two keys run together."""
    digest = hashlib.blake2b(digest_size=8)
    for part in key:
        if not isinstance(part, int | str | np.integer) or isinstance(part, bool):
            raise ValueError(f"key: parts are integers or strings, got {part!r} of type {type(part).__name__}")
        text = part if isinstance(part, str) else str(int(part))
        kind = "s" if isinstance(part, str) else "i"
        digest.update(f"{kind}{len(text)}:{text}".encode())
    return int.from_bytes(digest.digest(), "little") & (2**63 - 1)


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator of its own for `key`."""
    return torch.Generator().manual_seed(key_seed(*key))


def normal(generators: list[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise (len(generators), *shape) in float32, row i drawn from generator i alone."""
    return torch.stack([torch.randn(shape, generator=g) for g in generators])


def permutation(size: int, *key: int | str) -> np.ndarray:
    """A random order (size,) of 0 … size − 1 for `key`, int64."""
    return np.random.default_rng(key_seed(*key)).permutation(size)
