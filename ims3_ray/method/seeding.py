"""Seeds per sample: a key such as ("sample", seed, class, subgroup, index) fixes every random draw.

A key is a tuple of integers and strings. Draws do not depend on the worker, the batch or the order of work.
They are made on the CPU, so the same key gives the same numbers on every device.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # torch takes seconds to import, and commands that only read images do not need it
    import torch


def key_seed(*key: int | str) -> int:
    """Return a 63-bit seed: BLAKE2b over the parts of `key`, each with its type and length."""
    digest = hashlib.blake2b(digest_size=8)
    for part in key:
        if isinstance(part, bool) or not isinstance(part, int | str | np.integer):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"key: parts must be integers or strings, not {part!r} ({type(part).__name__})")
        text = part if isinstance(part, str) else str(int(part))
        kind = "s" if isinstance(part, str) else "i"
        digest.update(f"{kind}{len(text)}:{text}".encode())
    return int.from_bytes(digest.digest(), "little") & (2**63 - 1)


def permutation(size: int, *key: int | str) -> np.ndarray:
    """Return a random order (size,) of 0 … size − 1 for `key`, int64."""
    return np.random.default_rng(key_seed(*key)).permutation(size)


class EpochOrder:
    """Rows per training step: each epoch is a permutation keyed by (*key, epoch), drawn when it begins."""

    def __init__(self, *key: int | str):
        self._key, self._current = key, (-1, np.empty(0, np.int64))

    def batch(self, step: int, size: int, count: int) -> np.ndarray:
        """Return the rows (size,) of step `step` among `count`; an epoch ends with its last full batch."""
        epoch, place = divmod(step, max(1, count // size))
        current = self._current  # threads may be in different epochs
        if epoch != current[0]:
            self._current = current = epoch, permutation(count, *self._key, epoch)
        return current[1][place * size : (place + 1) * size]


def generator(*key: int | str) -> "torch.Generator":
    """Return a CPU generator seeded with `key`."""
    import torch

    return torch.Generator().manual_seed(key_seed(*key))


def normal(generators: "list[torch.Generator]", shape: tuple[int, ...]) -> "torch.Tensor":
    """Return standard normal noise (len(generators), *shape) in float32; row i is drawn from generator i."""
    import torch

    return torch.stack([torch.randn(shape, generator=g) for g in generators])
