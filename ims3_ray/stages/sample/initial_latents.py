"""Initial latents of `sample.start=inversion`: stored inversions of real images instead of pure noise.

Beyond the paper, which uses inversions only for matching. An initial latent keeps the coarse content of its
image, down to its noise level; the sampler adds the rest. Starts spread over the class reach regions in which
sampling from pure noise seldom ends.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import safetensors.numpy

from ims3_ray.cluster.tasks import map_in_order
from ims3_ray.method import coresets
from ims3_ray.method.seeding import permutation
from ims3_ray.stages.context import Context
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.rows import Index, read_index

STARTS = "starts.safetensors"


@dataclass(frozen=True)
class InitialLatents:
    """Inversions (N, C, h, w) float16 of one level, class by class, of joint variance 1.

    Latents have unit variance at every level, but errors of the inversion shrink it. `noise` is the share of
    fresh noise in the variance of a start; by default it is the missing variance, so the inversion itself is
    used unscaled.
    """

    latents: np.ndarray
    noise: float
    offsets: np.ndarray  # (classes + 1,) int64: class i has the rows offsets[i] ... offsets[i + 1] - 1
    pool_ipc: int

    def save(self, out: Directory) -> None:
        """Write the latents beside the candidates, where each actor reads them, restarted ones too."""
        numbers = {"noise": self.noise, "pool_ipc": self.pool_ipc}
        arrays = {name: np.array(value) for name, value in numbers.items()}
        out.write(STARTS, safetensors.numpy.save(arrays | {"latents": self.latents, "offsets": self.offsets}))

    @classmethod
    def load(cls, folder: Directory) -> "InitialLatents":
        arrays = safetensors.numpy.load(folder.read(STARTS))
        numbers = {name: arrays.pop(name).item() for name in ("noise", "pool_ipc")}
        return cls(**arrays, **numbers)

    def rows(self, label: np.ndarray, subgroup: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Return the row of each candidate (B,): those of its class in order, then from the first again."""
        counts = np.diff(self.offsets)[label]
        return self.offsets[label] + (subgroup * self.pool_ipc + index) % counts


def collect_initial_latents(
    context: Context, inversions: Directory, features: Directory, *, level: int
) -> InitialLatents:
    """Choose `start_images` inverted images per class; read their inversions at grid point `level`."""
    config, settings = context.config, context.config.sample
    real = read_index(features, schemas.FEATURES, ["label", "image_id"])
    inverted = read_index(inversions, schemas.INVERSIONS, ["label", "image_id"])
    row_of = {key: row for row, key in enumerate(_keys(inverted))}
    rows = np.array([row_of.get(key, -1) for key in _keys(real)])  # of `inverted`; -1 if absent
    count = settings.start_images or config.pool_ipc

    def by_name() -> Iterator[tuple[Index, Index, int, int, int, str]]:
        for label, name in enumerate(context.classes):
            own = np.flatnonzero((rows >= 0) & (real.keys["label"] == label))
            yield real.take(own), inverted.take(rows[own]), level, min(count, len(own)), config.seed, name

    by_class = list(map_in_order(_read_class, by_name(), len(context.classes)))
    latents = np.concatenate(by_class).astype(np.float32)
    variance = float(np.mean(latents.astype(np.float64) ** 2))
    noise = max(0.0, 1 - variance)
    offsets = np.concatenate([[0], np.cumsum([len(of_class) for of_class in by_class])])
    return InitialLatents((latents / variance**0.5).astype(np.float16), noise, offsets, config.pool_ipc)


def _keys(index: Index) -> list[tuple[int, str]]:
    return list(zip(index.keys["label"].tolist(), index.keys["image_id"].tolist(), strict=True))


def _read_class(real: Index, inverted: Index, level: int, count: int, seed: int, name: str) -> np.ndarray:
    """Return the inversions (count, C, h, w) at `level` of the k-means medoids of one class.

    Both indices list the same images. The order is random, so that the first few are spread like all of them.
    """
    places = coresets.medoids(real.read("feature"), count, "starts", seed, name)
    places = places[permutation(count, "start-order", seed, name)]
    return inverted.take(places).read("inversion")[:, level]
