"""Encode the training images: images → latents (VAE posteriors of each image and of its mirror image)."""

from typing import Any

import numpy as np
import torch

from ims3_ray.cluster.fan_out import Part, fan_out, rows_per_part
from ims3_ray.config.sections import Model
from ims3_ray.data.images import check_readable
from ims3_ray.data.loader import BatchReader, Payload, payloads
from ims3_ray.models.device import Numerics, prepare_device, run_padded_batches, to_images
from ims3_ray.models.generator import load_vae
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.schemas import Columns

from .base import (
    KEY_BYTES,
    Cost,
    Forward,
    Stage,
    generator_bytes,
    latent_bytes,
    parts_bytes,
    pixel_bytes,
    pool_usage,
)
from .context import Context


def run(context: Context, out: Directory) -> dict[str, Any]:
    """Encode a seeded subset of `encode.images_per_class` images per class.

    Raises InputError if more than `data.max_bad_fraction` of the files are unreadable.
    """
    config, train = context.config, context.images["train"]
    rows = train.subset(config.encode.images_per_class, "encode", config.seed)
    size = part_rows(context)
    parts = [Part(i, len(p["paths"]), p) for i, p in enumerate(payloads(train, rows.tolist(), size))]
    details = fan_out(
        Encoder,
        encoder_arguments(context),
        parts,
        table=schemas.MIRRORED_LATENTS if config.data.mirror else schemas.LATENTS,
        out=out,
        machine=context.machine,
        stage="encode",
    )
    check_readable(train, details["notes"], "data.train", config.data.max_bad_fraction)
    return details


def part_rows(context: Context) -> int:
    """Images per part of the latents and of the inversions."""
    return rows_per_part(context.num_tuned, context.batch_size(context.config.encode))


def encoder_arguments(context: Context) -> dict[str, Any]:
    """Arguments of `Encoder`."""
    config = context.config
    return {
        "images": context.images["train"].directory,
        "model": config.model,
        "mirror": config.data.mirror,
        "batch_size": context.batch_size(config.encode),
        "numerics": context.numerics,
    }


class Encoder:
    """Maps the paths of a batch to latents; undecodable images are noted and skipped."""

    def __init__(self, images: Directory, model: Model, mirror: bool, batch_size: int, numerics: Numerics):
        self._device = prepare_device(numerics.device)
        self._vae = load_vae(
            model.path, vae=model.vae, heads=model.heads, device=self._device, dtype=numerics.dtype
        )
        self._read = BatchReader(images, self._vae.image_size)
        self._mirror, self._batch_size = mirror, batch_size

    def __call__(self, payload: Payload) -> tuple[Columns, dict[str, str]]:
        pixels, columns, bad = self._read(payload)
        columns["mean"], columns["logvar"] = self._encode(pixels)
        if self._mirror:
            columns["mirror_mean"], columns["mirror_logvar"] = self._encode(pixels[..., ::-1])
        return columns, bad

    @torch.inference_mode()
    def _encode(self, pixels: np.ndarray) -> list[np.ndarray]:
        def encode(batch: torch.Tensor) -> list[torch.Tensor]:
            return [x.half() for x in self._vae.encode(to_images(batch))]

        return run_padded_batches(encode, [pixels], self._batch_size, self._device)


def _fingerprint_inputs(context: Context) -> object:
    config, generator = context.config, context.generator_values()
    seed = config.seed if config.encode.images_per_class else None
    images = [context.inputs["images"], config.data.mirror, seed]
    values = context.values_of(config.encode)
    return [images, values, generator["model"], generator["numerics"], part_rows(context)]


def _cost(context: Context, forward: Forward) -> Cost:
    rows, views = context.num_tuned, context.num_views
    disk = rows * views * 2 * latent_bytes(context)
    pixels = pixel_bytes(1, context.info.image_size)
    parts = parts_bytes(part_rows(context), pixels + disk / rows)
    return Cost(rows, views * forward.encode, disk, generator_bytes(context) + parts, rows * KEY_BYTES)


STAGE = Stage(
    name="encode",
    output="latents",
    version=2,
    is_enabled=lambda context: context.config.is_tuned or context.starts_from_inversions,
    run=run,
    fingerprint_inputs=_fingerprint_inputs,
    cost=_cost,
    gpu_usage=lambda context: pool_usage(context, context.num_tuned, part_rows(context)),
)
