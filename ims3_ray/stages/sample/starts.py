"""Where candidates start: stored inversions of chosen real images, in place of pure noise
(`sample.start=inversion`).

Beyond the paper, which uses inversions for matching alone. A start keeps what the image is down to its level
and leaves the rest to the sampler; as many starts as candidates, spread over the class, reach regions that
pure noise seldom ends in.
"""

from dataclasses import dataclass

import numpy as np
import ray
import safetensors.numpy

from ims3_ray.config.sections import Sample
from ims3_ray.method import coresets
from ims3_ray.method.coverage import neighbour_distances, sparsest
from ims3_ray.method.keys import permutation
from ims3_ray.method.schedule import inversion_grid
from ims3_ray.storage import tables
from ims3_ray.storage.artifacts import Directory, part_names, read_rows

STARTS = "starts.safetensors"
NEIGHBOURS = 5  # k of the distances by which an image counts as sparse
CPUS_PER_TASK = 0.5


@dataclass(frozen=True)
class Starts:
    """Inversions (N, C, h, w) float16 at `timestep`, scaled to unit variance over all of them, class after
    class.

    Latents are of unit variance at every level, and inversions of less: their errors shrink them. `noise` is
    the share of fresh noise in the variance of a start; the share that leaves the inversion itself as it is
    fills up what it lacks.
    """

    timestep: int
    latents: np.ndarray
    noise: float
    offsets: np.ndarray  # (classes + 1,) int64: class i has the rows from offsets[i] on
    pool_ipc: int

    def save(self, out: Directory) -> None:
        """Write them beside the candidates, for every actor to read: an actor that is started again needs no
        other.
        """
        numbers = {"timestep": self.timestep, "noise": self.noise, "pool_ipc": self.pool_ipc}
        arrays = {name: np.array(value) for name, value in numbers.items()}
        out.write(STARTS, safetensors.numpy.save(arrays | {"latents": self.latents, "offsets": self.offsets}))

    @classmethod
    def load(cls, folder: Directory) -> "Starts":
        arrays = safetensors.numpy.load(folder.read(STARTS))
        numbers = {name: arrays.pop(name).item() for name in ("timestep", "noise", "pool_ipc")}
        return cls(**arrays, **numbers)

    def rows(self, label: np.ndarray, subgroup: np.ndarray, index: np.ndarray) -> np.ndarray:
        """The start of every candidate (B,): a class's starts are dealt out in order, again from the first
        when all are.
        """
        counts = np.diff(self.offsets)[label]
        return self.offsets[label] + (subgroup * self.pool_ipc + index) % counts


def collect_starts(
    settings: Sample,
    pool_ipc: int,
    seed: int,
    classes: tuple[str, ...],
    inversions: Directory,
    features: Directory,
    points: int,
) -> Starts:
    """Choose `start_images` inverted images of every class by their features, and read their inversions at
    the level.
    """
    grid = inversion_grid(points)[1:].numpy()
    level = int(np.abs(grid - settings.start_level).argmin())
    names = part_names(inversions)
    inverted = ray.get([_ids.remote(inversions, name) for name in names])
    known = set().union(*inverted)
    real = read_rows(features, tables.FEATURES)
    keys = list(zip(real["label"].tolist(), real["image_id"].tolist(), strict=True))
    is_known = np.array([key in known for key in keys])
    wanted = settings.start_images or pool_ipc
    rows = [np.flatnonzero(is_known & (real["label"] == label)) for label in range(len(classes))]
    choose = ray.remote(num_cpus=CPUS_PER_TASK)(choose_images)
    chosen = ray.get(
        [
            choose.remote(real["feature"][own], min(wanted, len(own)), settings.start_from, seed, name)
            for own, name in zip(rows, classes, strict=True)
        ]
    )
    order = [keys[own[place]] for own, places in zip(rows, chosen, strict=True) for place in places]
    kept = set(order)
    read = [
        _read.remote(inversions, name, level, [key in kept for key in part])
        for name, part in zip(names, inverted, strict=True)
        if any(key in kept for key in part)
    ]
    found = {key: latent for part in ray.get(read) for key, latent in part}
    latents = np.stack([found[key] for key in order]).astype(np.float32)
    variance = float(np.mean(latents.astype(np.float64) ** 2))
    noise = max(0.0, 1 - variance) if settings.start_noise is None else settings.start_noise
    offsets = np.concatenate([[0], np.cumsum([len(places) for places in chosen])])
    return Starts(int(grid[level]), (latents / variance**0.5).astype(np.float16), noise, offsets, pool_ipc)


def choose_images(features: np.ndarray, count: int, how: str, seed: int, name: str) -> np.ndarray:
    """Places (count,) of the chosen images of a class with `features` (N, D), in a random order: so that the
    first of them are spread as all are. k-means medoids, any, or those with the largest distance to their
    neighbours."""
    if how == "medoids":
        chosen = coresets.medoids(features, count, "starts", seed, name)
    elif how == "sparse":
        chosen = sparsest(neighbour_distances(features, min(NEIGHBOURS, len(features) - 1)), 1.0)[:count]
    else:
        chosen = permutation(len(features), "starts", seed, name)[:count]
    return chosen[permutation(count, "start-order", seed, name)]


@ray.remote(num_cpus=CPUS_PER_TASK)
def _ids(inversions: Directory, name: str) -> list[tuple[int, str]]:
    """(label, image id) of the rows of a part."""
    rows = tables.from_parquet(inversions.read(name), tables.INVERSIONS, ["label", "image_id"])
    return list(zip(rows["label"].tolist(), rows["image_id"].tolist(), strict=True))


@ray.remote(num_cpus=CPUS_PER_TASK)
def _read(
    inversions: Directory, name: str, level: int, kept: list[bool]
) -> list[tuple[tuple[int, str], np.ndarray]]:
    """The inversions of the kept rows of a part at one level, by (label, image id)."""
    rows = tables.from_parquet(inversions.read(name), tables.INVERSIONS)
    return [
        ((int(rows["label"][row]), rows["image_id"][row]), rows["inversion"][row, level])
        for row in np.flatnonzero(kept)
    ]
