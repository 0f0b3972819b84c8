"""What candidates are moved towards with `sample.guidance`: anchors, latents of real images of their class.

Beyond the paper. As many distinct anchors as a subgroup has images decide (method/guidance.py); those are the
medoids of k-means in pooled latents, which keep what lies where and leave out what is fine.
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
from ims3_ray.storage.rows import part_names, read_part

ANCHORS = "anchors.safetensors"
POOLED = 4  # height and width that latents are averaged to
CPUS_PER_TASK = 0.5


@dataclass(frozen=True)
class Anchors:
    """Of every class the latents (classes, K, C, h, w) float16, and their masses (classes, K) float32."""

    latents: np.ndarray
    masses: np.ndarray
    pool_ipc: int

    def save(self, out: Directory) -> None:
        """Write them beside the candidates, where every actor reads them, one that starts again, too."""
        arrays = {"latents": self.latents, "masses": self.masses, "pool_ipc": np.array(self.pool_ipc)}
        out.write(ANCHORS, safetensors.numpy.save(arrays))

    @classmethod
    def load(cls, folder: Directory) -> "Anchors":
        arrays = safetensors.numpy.load(folder.read(ANCHORS))
        return cls(pool_ipc=arrays.pop("pool_ipc").item(), **arrays)

    def dealt(self, places: np.ndarray) -> np.ndarray:
        """The anchor (B, C, h, w) of every candidate (label, subgroup, index) (3, B), dealt out in turn."""
        label, subgroup, index = places
        return self.latents[label, (subgroup * self.pool_ipc + index) % self.latents.shape[1]]

    def guidance(
        self, places: np.ndarray, settings: Sample, batch_size: int, device: torch.device
    ) -> Guidance:
        """The pull of `settings` on candidates (label, subgroup, index) (3, N) of a batch.

        It is filled up with rows of the first class, so that results are those in a full batch. With
        `guidance=transport` the candidates are whole subgroups.
        """
        places = np.pad(places, [(0, 0), (0, batch_size - places.shape[1])])
        if settings.guidance == "modes":
            anchors = torch.from_numpy(self.dealt(places)).to(device).float()
            target: Target = lambda _: anchors  # noqa: E731
        else:
            of_sets = places[0, : batch_size - batch_size % self.pool_ipc : self.pool_ipc]
            anchors, masses = (
                torch.from_numpy(values[of_sets]).to(device).float() for values in (self.latents, self.masses)
            )
            target = transport(anchors, masses, set_size=self.pool_ipc)
        return guidance_step(target, strength=settings.anchor_strength, interval=settings.anchor_interval)


def check_anchors(context: Context) -> None:
    """InputError where a class has too few images for its anchors, or a batch holds no whole subgroup."""
    config, settings = context.config, context.config.sample
    if settings.guidance == "none":
        return
    counts, count = context.images["train"].counts(), config.pool_ipc
    has = int(min(counts.min(), config.encode.images_per_class or counts.max()))
    if has < count:
        raise InputError(_too_few(context, int(counts.argmin()), has))
    size = context.batch_size(config.sample)
    if settings.guidance == "transport" and config.pool_ipc > size:
        raise InputError(
            f"sample.batch_size.{context.machine.device}: {size} holds less than a subgroup of "
            f"{config.pool_ipc} images, which sample.guidance=transport moves as one; raise it"
        )


def _too_few(context: Context, label: int, has: int) -> str:
    return (
        f"sample.guidance: class {context.classes[label]!r} has {has} encoded images for "
        f"{context.config.pool_ipc} anchors; add images, raise encode.images_per_class, or lower "
        "sample.pool_ipc or ipc"
    )


def collect_anchors(context: Context, latents: Directory) -> Anchors:
    """Choose the anchors of every class among its encoded images. InputError where too few could be read."""
    seed, count, names = context.config.seed, context.config.pool_ipc, part_names(latents)
    parts = ray.get([_read_pooled.remote(latents, name) for name in names])
    label, pooled = (np.concatenate(column) for column in zip(*parts, strict=True))
    own = [np.flatnonzero(label == i) for i in range(len(context.classes))]
    for i, rows in enumerate(own):
        if len(rows) < count:
            raise InputError(_too_few(context, i, len(rows)))
    choose = ray.remote(num_cpus=CPUS_PER_TASK)(choose_anchors)
    choices = ray.get(
        [
            choose.remote(pooled[rows], count, seed, name)
            for rows, name in zip(own, context.classes, strict=True)
        ]
    )
    chosen = np.stack([rows[places] for rows, (places, _) in zip(own, choices, strict=True)])
    starts = np.cumsum([0, *(len(part[0]) for part in parts)])
    part_of = np.searchsorted(starts, chosen, side="right") - 1
    wanted = {part: chosen[part_of == part] for part in np.unique(part_of)}
    read = ray.get(
        [_read_latents.remote(latents, names[part], rows - starts[part]) for part, rows in wanted.items()]
    )
    values = np.empty((*chosen.shape, *read[0].shape[1:]), np.float16)
    for part, of_part in zip(wanted, read, strict=True):
        values[part_of == part] = of_part
    return Anchors(values, np.stack([masses for _, masses in choices]), context.config.pool_ipc)


def choose_anchors(pooled: np.ndarray, count: int, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Places (count,) of a class's medoids among its pooled latents (N, D), and their masses (count,).

    A mass is the share of the class that is nearer to this medoid than to the others. In a random order, by
    which the first of them are spread as all are.
    """
    places = coresets.medoids(pooled, count, "anchors", seed, name)
    places = places[permutation(count, "anchor-order", seed, name)]
    nearest = cdist(pooled.astype(np.float64), pooled[places].astype(np.float64)).argmin(axis=1)
    return places, (np.bincount(nearest, minlength=count) / len(pooled)).astype(np.float32)


def pool(latents: np.ndarray) -> np.ndarray:
    """Latents (N, C, h, w) averaged to at most POOLED a side, flat, float32."""
    side = min(POOLED, latents.shape[-1])
    return adaptive_avg_pool2d(torch.from_numpy(latents).float(), side).flatten(1).numpy()


@ray.remote(num_cpus=CPUS_PER_TASK)
def _read_pooled(latents: Directory, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and pooled latents of a part's rows."""
    rows = read_part(latents, name, schemas.LATENTS, ["label", "mean"])
    return rows["label"], pool(rows["mean"])


@ray.remote(num_cpus=CPUS_PER_TASK)
def _read_latents(latents: Directory, name: str, rows: np.ndarray) -> np.ndarray:
    """Of these rows of a part."""
    return read_part(latents, name, schemas.LATENTS, ["mean"])["mean"][rows]
