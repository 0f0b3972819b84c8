"""Invert latents by DDIM under the pretrained model (Eq. 1–3): latents → inversions."""

from typing import Any

import numpy as np
import torch

from ims3_ray.cluster.fan_out import Part, fan_out
from ims3_ray.method.ddim import broadcast_timestep, invert
from ims3_ray.method.schedule import alphas_bar, inversion_grid
from ims3_ray.models.device import prepare_device, run_padded_batches
from ims3_ray.models.finetuned import TunedModel
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.rows import read_index, read_part
from ims3_ray.storage.schemas import Columns

from .base import Cost, Forward, Stage, generator_bytes, latent_bytes, parts_bytes, pool_usage
from .context import Context
from .encode import part_rows


def run(context: Context, out: Directory, latents: Directory) -> dict[str, Any]:
    """Write trajectories at the S grid points, of images and mirror images, one part per part of latents."""
    config = context.config
    index = read_index(latents, schemas.LATENTS, ["label"])
    rows = np.bincount(index.file, minlength=len(index.files)).tolist()
    parts = [Part(i, *part) for i, part in enumerate(zip(rows, index.files, strict=True))]
    details = fan_out(
        Inverter,
        inverter_arguments(context, latents),
        parts,
        table=schemas.MIRRORED_INVERSIONS if config.data.mirror else schemas.INVERSIONS,
        out=out,
        machine=context.machine,
        stage="invert",
    )
    return details


def inverter_arguments(context: Context, latents: Directory) -> dict[str, Any]:
    """Arguments of `Inverter`."""
    config = context.config
    return {
        "latents": latents,
        "model": context.tuned_model(),
        "model_labels": context.model_labels,
        "steps": config.invert.steps,
        "mirror": config.data.mirror,
        "batch_size": context.batch_size(config.invert),
    }


class Inverter:
    """Maps a part of the latents to its inversions."""

    def __init__(
        self,
        latents: Directory,
        model: TunedModel,
        model_labels: list[int],
        steps: int,
        mirror: bool,
        batch_size: int,
    ):
        self._device = prepare_device(model.numerics.device)
        self._predict = broadcast_timestep(model.load(self._device).predict)
        self._latents, self._mirror, self._batch_size = latents, mirror, batch_size
        self._model_labels = np.array(model_labels)
        self._grid = inversion_grid(steps)
        self._abar = alphas_bar().to(self._device)

    def __call__(self, part_name: str) -> tuple[Columns, dict[str, str]]:
        table = schemas.MIRRORED_LATENTS if self._mirror else schemas.LATENTS
        rows = read_part(self._latents, part_name, table)
        labels = self._model_labels[rows["label"]]
        views = ("", "mirror_") if self._mirror else ("",)  # batches mix both views
        means = np.concatenate([rows[f"{view}mean"] for view in views])
        inverted = self._invert(means, np.tile(labels, len(views)))
        columns = {"image_id": rows["image_id"], "label": rows["label"]}
        for view, trajectories in zip(views, np.split(inverted, len(views)), strict=True):
            columns[f"{view}inversion"] = trajectories
        return columns, {}

    @torch.inference_mode()
    def _invert(self, mean: np.ndarray, labels: np.ndarray) -> np.ndarray:
        def trajectories(z0: torch.Tensor, label: torch.Tensor) -> list[torch.Tensor]:
            z = invert(self._predict, z0.float(), label, self._grid, self._abar)
            return [z.half()]

        return run_padded_batches(trajectories, [mean, labels], self._batch_size, self._device)[0]


def _cost(context: Context, forward: Forward) -> Cost:
    rows, views, settings = context.num_tuned, context.num_views, context.config.invert
    passes = views * settings.steps
    disk = rows * views * settings.steps * latent_bytes(context)
    parts = parts_bytes(part_rows(context), disk / rows)
    return Cost(rows, passes * forward.dit, disk, generator_bytes(context) + parts)


def _fingerprint_inputs(context: Context) -> object:
    return [context.values_of(context.config.invert), context.generator_values()]


STAGE = Stage(
    name="invert",
    output="inversions",
    version=2,
    inputs=("latents",),
    is_enabled=lambda context: context.matches_trajectories or context.starts_from_inversions,
    run=run,
    fingerprint_inputs=_fingerprint_inputs,
    cost=_cost,
    gpu_usage=lambda context: pool_usage(context, context.num_tuned, part_rows(context)),
)
