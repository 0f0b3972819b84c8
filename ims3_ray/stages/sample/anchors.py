"""Anchors of `sample.guidance`: latents of real images towards which the candidates of a class are moved.

Beyond the paper. The anchors of a class are k-means medoids of its latents, which are pooled first: pooling
keeps the layout and drops fine detail. By default a class has as many anchors as a subgroup has images.
"""

from dataclasses import dataclass

import numpy as np
import ray
import safetensors.numpy
import torch
from scipy.spatial.distance import cdist
from torch.nn.functional import adaptive_avg_pool2d

from ims3_ray.config.sections import Sample
from ims3_ray.errors import InputError
from ims3_ray.method import coresets
from ims3_ray.method.ddim import Guidance
from ims3_ray.method.guidance import Target, guidance_step, transport
from ims3_ray.method.seeding import permutation
from ims3_ray.stages.context import Context
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.rows import Index, read_index

ANCHORS = "anchors.safetensors"
POOLED_SIZE = 4  # height and width of pooled latents
CPUS_PER_TASK = 0.5


@dataclass(frozen=True)
class Anchors:
    """Per class the latents (classes, K, C, h, w) float16, and their masses (classes, K) float32."""

    latents: np.ndarray
    masses: np.ndarray
    pool_ipc: int

    def save(self, out: Directory) -> None:
        """Write the anchors beside the candidates, where each actor reads them, restarted ones too."""
        arrays = {"latents": self.latents, "masses": self.masses, "pool_ipc": np.array(self.pool_ipc)}
        out.write(ANCHORS, safetensors.numpy.save(arrays))

    @classmethod
    def load(cls, folder: Directory) -> "Anchors":
        arrays = safetensors.numpy.load(folder.read(ANCHORS))
        return cls(pool_ipc=arrays.pop("pool_ipc").item(), **arrays)

    def assign(self, places: np.ndarray) -> np.ndarray:
        """Return the anchor (B, C, h, w) of each candidate (label, subgroup, index) (3, B), in turn."""
        label, subgroup, index = places
        return self.latents[label, (subgroup * self.pool_ipc + index) % self.latents.shape[1]]

    def guidance(
        self, places: np.ndarray, settings: Sample, batch_size: int, device: torch.device
    ) -> Guidance:
        """Return the pull of `settings` on candidates (label, subgroup, index) (3, N) of a batch.

        A short batch is padded with rows of the first class, which gives the results of a full batch. With
        `guidance=transport` the candidates are whole subgroups.
        """
        places = np.pad(places, [(0, 0), (0, batch_size - places.shape[1])])
        if settings.guidance == "modes":
            anchors = torch.from_numpy(self.assign(places)).to(device).float()
            target: Target = lambda _: anchors  # noqa: E731
        else:
            of_sets = places[0, : batch_size - batch_size % self.pool_ipc : self.pool_ipc]
            anchors, masses = (
                torch.from_numpy(values[of_sets]).to(device).float() for values in (self.latents, self.masses)
            )
            target = transport(anchors, masses, set_size=self.pool_ipc)
        return guidance_step(target, strength=settings.anchor_strength, interval=settings.anchor_interval)


def check_anchors(context: Context) -> None:
    """Raise InputError if a class has too few images for its anchors, or a batch is below a subgroup."""
    config, settings = context.config, context.config.sample
    if settings.guidance == "none":
        return
    counts = context.images["train"].counts()
    num_images = int(min(counts.min(), config.encode.images_per_class or counts.max()))
    if num_images < context.config.pool_ipc:
        raise _too_few_images(context, int(counts.argmin()), num_images)
    size = context.batch_size(config.sample)
    if settings.guidance == "transport" and config.pool_ipc > size:
        raise InputError(
            f"sample.batch_size.{context.machine.device}: {size} is below a subgroup of {config.pool_ipc} "
            "images, which sample.guidance=transport moves together; raise it"
        )


def _too_few_images(context: Context, label: int, num_images: int) -> InputError:
    return InputError(
        f"sample.guidance: class {context.classes[label]!r} has {num_images} encoded images for "
        f"{context.config.pool_ipc} anchors; add images, raise encode.images_per_class, or lower "
        "sample.pool_ipc or ipc"
    )


def collect_anchors(context: Context, latents: Directory) -> Anchors:
    """Choose the anchors of each class from its encoded images. Raises InputError if too few are left."""
    count, index = context.config.pool_ipc, read_index(latents, schemas.LATENTS, ["label"])
    tasks: list[ray.ObjectRef] = []
    for label, name in enumerate(context.classes):
        images = index.take(np.flatnonzero(index.keys["label"] == label))
        if len(images) < count:
            raise _too_few_images(context, label, len(images))
        tasks.append(_read_anchors.remote(images, count, context.config.seed, name))
    values, masses = zip(*ray.get(tasks), strict=True)
    return Anchors(np.stack(values), np.stack(masses), context.config.pool_ipc)


@ray.remote(num_cpus=CPUS_PER_TASK)
def _read_anchors(images: Index, count: int, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the anchors (count, C, h, w) of one class with the latents `images`, and their masses."""
    latents = images.read("mean")
    places, masses = choose_anchors(pool(latents), count, seed, name)
    return latents[places], masses


def choose_anchors(pooled: np.ndarray, count: int, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the medoids among a class's pooled latents (N, D): places (count,) and masses (count,).

    The mass of a medoid is the share of images nearest to it. The order is random, so that the first few
    medoids are spread like all of them.
    """
    places = coresets.medoids(pooled, count, "anchors", seed, name)
    places = places[permutation(count, "anchor-order", seed, name)]
    nearest = cdist(pooled.astype(np.float64), pooled[places].astype(np.float64)).argmin(axis=1)
    return places, (np.bincount(nearest, minlength=count) / len(pooled)).astype(np.float32)


def pool(latents: np.ndarray) -> np.ndarray:
    """Average latents (N, C, h, w) to at most POOLED_SIZE per side; return them flat, float32."""
    side = min(POOLED_SIZE, latents.shape[-1])
    return adaptive_avg_pool2d(torch.from_numpy(latents).float(), side).flatten(1).numpy()
