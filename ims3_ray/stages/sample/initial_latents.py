"""Where candidates start with `sample.start=inversion`: stored inversions of real images, not pure noise.

Beyond the paper, which uses inversions for matching alone. A start keeps what the image is down to its level
and leaves the rest to the sampler; as many starts as candidates, spread over the class, reach regions that
pure noise seldom ends in.
"""

from dataclasses import dataclass

import numpy as np
import ray
import safetensors.numpy

from ims3_ray.method import coresets
from ims3_ray.method.seeding import permutation
from ims3_ray.stages.context import Context
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.rows import Index, part_names, read_index, read_part

from .timesteps import start_point

STARTS = "starts.safetensors"
CPUS_PER_TASK = 0.5
Key = tuple[int, str]  # an image's label and id


@dataclass(frozen=True)
class Starts:
    """Inversions (N, C, h, w) float16 of one level, class after class, of unit variance over all of them.

    Latents are of unit variance at every level, and inversions of less: their errors shrink them. `noise` is
    the share of fresh noise in the variance of a start; the share that leaves the inversion itself as it is
    fills up what it lacks.
    """

    latents: np.ndarray
    noise: float
    offsets: np.ndarray  # (classes + 1,) int64: class i has the rows from offsets[i] on
    pool_ipc: int

    def save(self, out: Directory) -> None:
        """Write them beside the candidates, where every actor reads them, one that starts again, too."""
        numbers = {"noise": self.noise, "pool_ipc": self.pool_ipc}
        arrays = {name: np.array(value) for name, value in numbers.items()}
        out.write(STARTS, safetensors.numpy.save(arrays | {"latents": self.latents, "offsets": self.offsets}))

    @classmethod
    def load(cls, folder: Directory) -> "Starts":
        arrays = safetensors.numpy.load(folder.read(STARTS))
        numbers = {name: arrays.pop(name).item() for name in ("noise", "pool_ipc")}
        return cls(**arrays, **numbers)

    def rows(self, label: np.ndarray, subgroup: np.ndarray, index: np.ndarray) -> np.ndarray:
        """The start of every candidate (B,): a class's are dealt out in order, then again from the first."""
        counts = np.diff(self.offsets)[label]
        return self.offsets[label] + (subgroup * self.pool_ipc + index) % counts


def collect_starts(context: Context, inversions: Directory, features: Directory) -> Starts:
    """Choose `start_images` inverted images of every class, and read their inversions at the level."""
    config, settings = context.config, context.config.sample
    level, _ = start_point(config)
    names = part_names(inversions)
    parts = dict(zip(names, ray.get([_read_keys.remote(inversions, name) for name in names]), strict=True))
    chosen = _choose(context, features, set().union(*parts.values()))
    order = [key for of_class in chosen for key in of_class]
    wanted = set(order)
    reads = [
        _read_inversions.remote(inversions, name, level, [key in wanted for key in keys])
        for name, keys in parts.items()
        if not wanted.isdisjoint(keys)
    ]
    by_key = {key: latent for part in ray.get(reads) for key, latent in part}
    latents = np.stack([by_key[key] for key in order]).astype(np.float32)
    variance = float(np.mean(latents.astype(np.float64) ** 2))
    noise = max(0.0, 1 - variance) if settings.start_noise is None else settings.start_noise
    offsets = np.concatenate([[0], np.cumsum([len(of_class) for of_class in chosen])])
    scaled = (latents / variance**0.5).astype(np.float16)
    return Starts(scaled, noise, offsets, config.pool_ipc)


def _choose(context: Context, features: Directory, inverted: set[Key]) -> list[list[Key]]:
    """By class, the images to start from, of those that are inverted."""
    settings, seed = context.config.sample, context.config.seed
    real = read_index(features, schemas.FEATURES, ["label", "image_id"])
    labels = real.keys["label"]
    keys = list(zip(labels.tolist(), real.keys["image_id"].tolist(), strict=True))
    is_inverted = np.array([key in inverted for key in keys])
    count = settings.start_images or context.config.pool_ipc
    rows = [np.flatnonzero(is_inverted & (labels == label)) for label in range(len(context.classes))]
    tasks = [
        _choose_of_class.remote(real.take(own), min(count, len(own)), seed, name)
        for own, name in zip(rows, context.classes, strict=True)
    ]
    return [[keys[own[place]] for place in places] for own, places in zip(rows, ray.get(tasks), strict=True)]


@ray.remote(num_cpus=CPUS_PER_TASK)
def _choose_of_class(real: Index, count: int, seed: int, name: str) -> np.ndarray:
    """Returns the places (count,) of a class's k-means medoids, in a random order."""
    places = coresets.medoids(real.read("feature"), count, "starts", seed, name)
    return places[permutation(count, "start-order", seed, name)]


@ray.remote(num_cpus=CPUS_PER_TASK)
def _read_keys(inversions: Directory, name: str) -> list[Key]:
    """Of the rows of a part."""
    rows = read_part(inversions, name, schemas.INVERSIONS, ["label", "image_id"])
    return list(zip(rows["label"].tolist(), rows["image_id"].tolist(), strict=True))


@ray.remote(num_cpus=CPUS_PER_TASK)
def _read_inversions(
    inversions: Directory, name: str, level: int, wanted: list[bool]
) -> list[tuple[Key, np.ndarray]]:
    """Of the wanted rows of a part, at one level."""
    rows = read_part(inversions, name, schemas.INVERSIONS)
    return [
        ((int(rows["label"][row]), rows["image_id"][row]), rows["inversion"][row, level])
        for row in np.flatnonzero(wanted)
    ]
