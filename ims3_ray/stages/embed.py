"""Embed the real training images with the frozen extractor φ. Reads images, makes features."""

from typing import Any

from ims3_ray.cluster.fan_out import Part, fan_out
from ims3_ray.data.reading import payloads
from ims3_ray.storage import tables
from ims3_ray.storage.artifacts import Directory

from .context import Context
from .embedding import Embedder

VERSION = 1


def run(context: Context, out: Directory) -> dict[str, Any]:
    """Features of every training image, at the generator's image size, as the candidates have."""
    config, train = context.config, context.images["train"]
    size = context.batch_size(config.embed)
    parts = [Part(i, len(p["paths"]), p) for i, p in enumerate(payloads(train, range(len(train)), size))]
    arguments = {
        "images": train.directory,
        "extractor": config.embed.extractor,
        "image_size": context.info.image_size,
        "batch_size": size,
        "device": context.machine.device,
    }
    made = fan_out(
        Embedder, arguments, parts, table=tables.FEATURES, out=out, machine=context.machine, stage="embed"
    )
    return made | {"bad_images": train.bad | made.pop("notes")}
