"""What a step of fine-tuning is made of: latents of real images, noise, timesteps, stored inversions."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ims3_ray.config.sections import Finetune
from ims3_ray.method.schedule import NUM_TRAIN_TIMESTEPS, grid_index_below, inversion_grid
from ims3_ray.method.seeding import EpochOrder, generator, normal
from ims3_ray.models.device import to_device
from ims3_ray.storage import disk_cache, schemas
from ims3_ray.storage.artifacts import Directory, fingerprint
from ims3_ray.storage.disk_cache import CachedRows, open_cache
from ims3_ray.storage.rows import memory_bytes, part_names, prefetch, read_part
from ims3_ray.storage.schemas import Columns, Table

FETCHED_AHEAD = 4  # parts in memory while rows are laid on the disk
REMEDY = f"{disk_cache.REMEDY}; or lower encode.images_per_class"


@dataclass(frozen=True)
class Source:
    """Where the images' latents and inversions lie, and the model's label of each class."""

    latents: Directory
    inversions: Directory | None  # None where none is matched
    mirror: bool
    points: int  # S, of the inversions' grid
    model_labels: list[int]

    @cached_property
    def parts(self) -> list[str]:
        """Of both, part by part."""
        names, held = part_names(self.latents), [directory for directory, _ in _kinds(self)]
        assert all(part_names(directory) == names for directory in held), "inversions are made part by part"
        return names

    @cached_property
    def key(self) -> str:
        """Of these rows and no others, wherever they were read before."""
        files = [
            [held.uri, [[name, info.size, info.mtime_ns] for name, info in held.files().items()]]
            for held, _ in _kinds(self)
        ]
        return fingerprint([files, self.mirror])

    @cached_property
    def size(self) -> float:
        """About how many bytes the rows take on a disk."""
        of_first = sum(memory_bytes(directory, self.parts[0]) for directory, _ in _kinds(self))
        return of_first * len(self.parts)

    def ask(self) -> None:
        """Ask the storage what it holds; a worker that is sent this one then has no need to."""
        assert self.parts, "latents are read when they are complete"
        assert self.key
        assert self.size


@dataclass(frozen=True)
class Draws:
    """A batch of a step, row by row: its images, and all that is random about them."""

    z0: Float[Tensor, "B C H W"]  # drawn from the image's posterior
    eps: Float[Tensor, "B C H W"]  # ε, the noise to predict
    t: Int[Tensor, " B"]  # uniform on 1 … T − 1
    s: Int[Tensor, " B"]  # the largest grid point below t
    inverted: Float[Tensor, "B C H W"] | None  # z_s^inv; None where no trajectory is matched
    label: Int[Tensor, " B"]
    dropped: Bool[Tensor, " B"]  # the label, for guidance
    dropped_again: Bool[Tensor, " B"]  # the label, in the pass of the published one-step inversion
    matched: Bool[Tensor, " B"]  # has a matching term: its label, and a grid point above s_0

    def part(self, rows: slice, device: torch.device) -> "Draws":
        given = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(self, **{name: to_device(value[rows], device) for name, value in given.items()})


def open_source(source: Source) -> CachedRows:
    """The images' rows on this machine's disk. InputError where they do not fit it."""
    return open_cache(source.key, lambda: _joined(source, source.parts), source.size, REMEDY)


def _kinds(source: Source) -> list[tuple[Directory, Table]]:
    """Where the rows lie, and as what: latents and, where they are matched, inversions."""
    kinds = [(source.latents, schemas.MIRRORED_LATENTS if source.mirror else schemas.LATENTS)]
    if source.inversions:
        table = schemas.MIRRORED_INVERSIONS if source.mirror else schemas.INVERSIONS
        kinds.append((source.inversions, table))
    return kinds


def _joined(source: Source, names: list[str]) -> Iterator[Columns]:
    """Part by part, latents and inversions beside each other; some parts are fetched prefetch."""

    def read(name: str) -> Columns:
        rows, *others = (read_part(held, name, table) for held, table in _kinds(source))
        ids = rows.pop("image_id")
        for other in others:
            assert np.array_equal(ids, other.pop("image_id")), "inversions are of other images"
            rows |= other
        return rows

    return prefetch(read, names, FETCHED_AHEAD)


class Images:
    """The training images as stored. Every draw is keyed by (seed, step, position in the global batch).

    Latents and inversions stay on disk; a batch of them is in memory.
    """

    def __init__(self, source: Source, settings: Finetune, seed: int):
        self._settings, self._seed, self._grid = settings, seed, inversion_grid(source.points)
        self._stored, self._mirror = open_source(source), source.mirror
        self._has_inversions = source.inversions is not None
        self._model_labels = np.array(source.model_labels)
        self._order = EpochOrder("epoch", seed)

    def rows(self, step: int) -> Int[np.ndarray, " B"]:
        """Rows of the global batch of `step`: epochs are permutations keyed by (seed, epoch)."""
        return self._order.batch(step, self._settings.latents, self._stored.count)

    def labels(self, rows: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """The model's labels of images."""
        return self._model_labels[self._stored.read("label", rows)]

    def close(self) -> None:
        self._stored.close()

    def draw(self, step: int) -> Draws:
        """The global batch of `step`, on the CPU."""
        rows = self.rows(step)
        generators = [generator("finetune", self._seed, step, position) for position in range(len(rows))]
        mirrored, dropped = torch.stack([torch.rand(2, generator=g) for g in generators]).double().T  # (B,)
        times = [torch.randint(1, NUM_TRAIN_TIMESTEPS, (), generator=g) for g in generators]
        noise = normal(generators, (2, *self._stored.shape("mean")))  # (B, 2, C, H, W)
        again = torch.stack([torch.rand((), generator=g) for g in generators])  # (B,)
        t, is_dropped, flip = torch.stack(times), dropped < self._settings.label_dropout, mirrored < 0.5
        k = grid_index_below(t, self._grid)  # (B,)
        below = (k - 1).clamp_min(0).numpy()
        mean, logvar = self._pick("mean", flip, rows), self._pick("logvar", flip, rows)  # (B, C, H, W)
        return Draws(
            z0=mean + (0.5 * logvar).exp() * noise[:, 0],
            eps=noise[:, 1],
            t=t,
            s=self._grid[k],
            inverted=self._pick("inversion", flip, rows, below) if self._has_inversions else None,
            label=torch.from_numpy(self.labels(rows)),
            dropped=is_dropped,
            dropped_again=again < self._settings.label_dropout,
            matched=(k > 0) & ~is_dropped,
        )

    def _pick(self, column: str, flip: Bool[Tensor, " B"], *place: Int[np.ndarray, " B"]) -> Tensor:
        """A column's values (B, C, H, W) at `place`, of the mirror images where `flip` says so."""

        def read(name: str) -> Tensor:
            return torch.from_numpy(self._stored.read(name, *place).astype(np.float32))

        values = read(column)
        if not self._mirror:
            return values
        return torch.where(flip[:, None, None, None], read(f"mirror_{column}"), values)
