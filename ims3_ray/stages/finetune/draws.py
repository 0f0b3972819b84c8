"""What a step of fine-tuning is made of: latents of real images, noise, timesteps, stored inversions."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ims3_ray.config.sections import Finetune
from ims3_ray.method.keys import permutation
from ims3_ray.method.rng import generator, normal
from ims3_ray.method.schedule import NUM_TRAIN_TIMESTEPS, grid_index_below, inversion_grid
from ims3_ray.storage import tables
from ims3_ray.storage.artifacts import Directory, read_rows


@dataclass(frozen=True)
class Source:
    """Where the images' latents and inversions lie, and the model's label of each class."""

    latents: Directory
    inversions: Directory | None  # None where none is matched
    mirror: bool
    points: int  # S, of the inversions' grid
    model_labels: list[int]


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
        return replace(self, **{name: value[rows].to(device) for name, value in given.items()})


class Images:
    """The training images as stored. Every draw is keyed by (seed, step, position in the global batch)."""

    def __init__(self, source: Source, settings: Finetune, seed: int):
        self._settings, self._seed, self._grid = settings, seed, inversion_grid(source.points)
        z = read_rows(source.latents, tables.MIRRORED_LATENTS if source.mirror else tables.LATENTS)
        self._columns, self._mirror = z, source.mirror
        if source.inversions:
            table = tables.MIRRORED_INVERSIONS if source.mirror else tables.INVERSIONS
            inverted = read_rows(source.inversions, table)
            assert (z["image_id"] == inverted["image_id"]).all(), "inversions are of other images"
            self._columns = z | inverted
        self.labels: Int[np.ndarray, " N"] = np.array(source.model_labels)[z["label"]]

    def rows(self, step: int) -> Int[np.ndarray, " B"]:
        """Rows of the global batch of `step`: epochs are permutations keyed by (seed, epoch)."""
        size = self._settings.batch_size
        epoch, batch = divmod(step, len(self.labels) // size)
        return permutation(len(self.labels), "epoch", self._seed, epoch)[batch * size : (batch + 1) * size]

    def draw(self, step: int) -> Draws:
        """The global batch of `step`, on the CPU."""
        rows = self.rows(step)
        generators = [generator("finetune", self._seed, step, position) for position in range(len(rows))]
        mirrored, dropped = torch.stack([torch.rand(2, generator=g) for g in generators]).double().T  # (B,)
        times = [torch.randint(1, NUM_TRAIN_TIMESTEPS, (), generator=g) for g in generators]
        noise = normal(generators, (2, *self._columns["mean"].shape[1:]))  # (B, 2, C, H, W)
        again = torch.stack([torch.rand((), generator=g) for g in generators])  # (B,)
        t, is_dropped, flip = torch.stack(times), dropped < self._settings.label_dropout, mirrored < 0.5
        k = grid_index_below(t, self._grid)  # (B,)
        has_any = "inversion" in self._columns
        mean, logvar = self._pick("mean", flip, rows), self._pick("logvar", flip, rows)  # (B, C, H, W)
        return Draws(
            z0=mean + (0.5 * logvar).exp() * noise[:, 0],
            eps=noise[:, 1],
            t=t,
            s=self._grid[k],
            inverted=self._pick("inversion", flip, rows, (k - 1).clamp_min(0).numpy()) if has_any else None,
            label=torch.from_numpy(self.labels[rows]),
            dropped=is_dropped,
            dropped_again=again < self._settings.label_dropout,
            matched=(k > 0) & ~is_dropped,
        )

    def _pick(self, column: str, flip: Bool[Tensor, " B"], *place: Int[np.ndarray, " B"]) -> Tensor:
        """A column's values (B, C, H, W) at `place`, of the mirror images where `flip` says so."""
        values = torch.from_numpy(self._columns[column][place]).float()
        if not self._mirror:
            return values
        return torch.where(
            flip[:, None, None, None],
            torch.from_numpy(self._columns[f"mirror_{column}"][place]).float(),
            values,
        )
