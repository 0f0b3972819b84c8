"""Training batches of fine-tuning: latents of real images, noise, timesteps, stored inversions."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import NamedTuple

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

PREFETCH = 4  # parts in memory while the local cache is filled
REMEDY = f"{disk_cache.REMEDY}; or lower encode.images_per_class"


@dataclass(frozen=True)
class LatentSource:
    """The artefacts of latents and inversions, and the model's label of each class."""

    latents: Directory
    inversions: Directory | None  # None if no trajectory is matched
    mirror: bool
    points: int  # S, of the inversions' grid
    model_labels: list[int]

    @cached_property
    def parts(self) -> list[str]:
        """The part names, which both artefacts share."""
        names = part_names(self.latents)
        assert all(part_names(directory) == names for directory, _ in self.tables()), "inverted part by part"
        return names

    @cached_property
    def key(self) -> str:
        """Key of the local cache of these rows."""
        files = [
            [directory.uri, [[name, info.size, info.mtime_ns] for name, info in directory.files().items()]]
            for directory, _ in self.tables()
        ]
        return fingerprint([files, self.mirror])

    @cached_property
    def size(self) -> float:
        """Approximate bytes of the local cache."""
        first = sum(memory_bytes(directory, self.parts[0]) for directory, _ in self.tables())
        return first * len(self.parts)

    def load_metadata(self) -> None:
        """Fill the cached properties in the driver, so that no worker lists the storage."""
        assert self.parts, "latents are read when they are complete"
        assert self.key
        assert self.size

    def tables(self) -> list[tuple[Directory, Table]]:
        """Return the artefacts to read, with their schemas: latents, then inversions if they are matched."""
        tables = [(self.latents, schemas.MIRRORED_LATENTS if self.mirror else schemas.LATENTS)]
        if self.inversions:
            table = schemas.MIRRORED_INVERSIONS if self.mirror else schemas.INVERSIONS
            tables.append((self.inversions, table))
        return tables

    def open(self) -> CachedRows:
        """Open the rows on this machine's disk. Raises InputError if they do not fit."""
        return open_cache(
            self.key, lambda: prefetch(self._read_part, self.parts, PREFETCH), self.size, REMEDY
        )

    def _read_part(self, name: str) -> Columns:
        """Read a part's latents and inversions, joined by row."""
        rows, *others = (read_part(directory, name, table) for directory, table in self.tables())
        ids = rows.pop("image_id")
        for other in others:
            assert np.array_equal(ids, other.pop("image_id")), "inversions are of other images"
            rows |= other
        return rows


@dataclass(frozen=True)
class TrainingBatch:
    """Rows of the batch of a step: images and all random draws."""

    z0: Float[Tensor, "B C H W"]  # sample of the image's posterior
    eps: Float[Tensor, "B C H W"]  # ε, the noise to predict
    t: Int[Tensor, " B"]  # uniform on 1 … T − 1
    s: Int[Tensor, " B"]  # the largest grid point below t
    inverted: Float[Tensor, "B C H W"] | None  # z_s^inv; None if no trajectory is matched
    label: Int[Tensor, " B"]
    dropped: Bool[Tensor, " B"]  # the label is dropped, for guidance
    dropped_again: Bool[Tensor, " B"]  # likewise in the pass of the published one-step inversion
    matched: Bool[Tensor, " B"]  # has a matching term: label not dropped, s above s_0

    def to(self, device: torch.device) -> "TrainingBatch":
        tensors = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(self, **{name: to_device(value, device) for name, value in tensors.items()})


class FirstDraws(NamedTuple):
    """The draws of rows that precede their noise, and the generators that go on with it."""

    generators: list[torch.Generator]
    is_mirrored: Bool[Tensor, " B"]
    is_dropped: Bool[Tensor, " B"]
    t: Int[Tensor, " B"]
    k: Int[Tensor, " B"]  # index of s on the inversions' grid

    @property
    def is_matched(self) -> Bool[Tensor, " B"]:
        return (self.k > 0) & ~self.is_dropped


class LatentDataset:
    """Latents and inversions of the training images on disk, of which the drawn rows are in memory.

    All draws are keyed by (seed, step, position in the global batch). A thread draws the next step's rows.
    """

    def __init__(self, source: LatentSource, settings: Finetune, seed: int):
        self._settings, self._seed, self._grid = settings, seed, inversion_grid(source.points)
        self._stored, self._mirror = source.open(), source.mirror
        self._has_inversions = source.inversions is not None
        self._model_labels = np.array(source.model_labels)
        self._order = EpochOrder("epoch", seed)
        self._counted = (-1, 0)  # a step, and its number of rows with a matching term
        self._thread = ThreadPoolExecutor(1, "draw")
        self._next: dict[range, tuple[int, Future[TrainingBatch]]] = {}  # positions → step, its rows

    def rows(self, step: int) -> Int[np.ndarray, " B"]:
        """Return the rows of the batch of `step`; an epoch is a permutation keyed by (seed, epoch)."""
        return self._order.batch(step, self._settings.latents, self._stored.count)

    def labels(self, rows: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """Return the model's labels of images."""
        return self._model_labels[self._stored.read("label", rows)]

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._stored.close()

    def num_matched(self, step: int) -> int:
        """Return the number of rows with a matching term in the whole batch of `step`."""
        if self._counted[0] != step:
            first = self._first_draws(step, range(self._settings.latents))
            self._counted = step, int(first.is_matched.sum())
        return self._counted[1]

    def _first_draws(self, step: int, positions: range) -> FirstDraws:
        generators = [generator("finetune", self._seed, step, position) for position in positions]
        mirrored, dropped = torch.stack([torch.rand(2, generator=g) for g in generators]).double().T  # (B,)
        t = torch.stack([torch.randint(1, NUM_TRAIN_TIMESTEPS, (), generator=g) for g in generators])
        is_dropped = dropped < self._settings.label_dropout
        return FirstDraws(generators, mirrored < 0.5, is_dropped, t, grid_index_below(t, self._grid))

    def draw(self, step: int, positions: range) -> TrainingBatch:
        """Return the rows at `positions` of the global batch of `step`, on the CPU."""
        drawn_step, drawn = self._next.get(positions, (None, None))
        self._next[positions] = step + 1, self._thread.submit(self._draw, step + 1, positions)
        return drawn.result() if drawn and drawn_step == step else self._draw(step, positions)

    def _draw(self, step: int, positions: range) -> TrainingBatch:
        rows = self.rows(step)[positions.start : positions.stop]
        generators, flip, is_dropped, t, k = first = self._first_draws(step, positions)
        noise = normal(generators, (2, *self._stored.shape("mean")))  # (B, 2, C, H, W)
        again = torch.stack([torch.rand((), generator=g) for g in generators])  # (B,)
        below = (k - 1).clamp_min(0).numpy()
        mean, logvar = self._pick("mean", flip, rows), self._pick("logvar", flip, rows)  # (B, C, H, W)
        return TrainingBatch(
            z0=mean + (0.5 * logvar).exp() * noise[:, 0],
            eps=noise[:, 1],
            t=t,
            s=self._grid[k],
            inverted=self._pick("inversion", flip, rows, below) if self._has_inversions else None,
            label=torch.from_numpy(self.labels(rows)),
            dropped=is_dropped,
            dropped_again=again < self._settings.label_dropout,
            matched=first.is_matched,
        )

    def _pick(self, column: str, flip: Bool[Tensor, " B"], *place: Int[np.ndarray, " B"]) -> Tensor:
        """Read a column (B, C, H, W) at `place`, from the mirror images if `flip`."""

        def read(name: str) -> Tensor:
            return torch.from_numpy(self._stored.read(name, *place).astype(np.float32))

        values = read(column)
        if not self._mirror:
            return values
        return torch.where(flip[:, None, None, None], read(f"mirror_{column}"), values)
