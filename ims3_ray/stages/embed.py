"""Embed the real training images with the frozen extractor φ. Reads images, makes features."""

from typing import Any

from ims3_ray.cluster.fan_out import Part, fan_out
from ims3_ray.data.reading import payloads
from ims3_ray.storage import tables
from ims3_ray.storage.artifacts import Directory

from .context import Context
from .contract import Stage
from .costs import Cost, Forward
from .embedding import Embedder


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


def _depends(context: Context) -> object:
    inputs, settings = context.inputs, context.values_of(context.config.embed)
    return [inputs["images"], settings, inputs["extractor"], context.info.image_size, context.machine.device]


def _cost(context: Context, forward: Forward) -> Cost:
    rows = len(context.images["train"])
    return Cost(rows, forward.embed, rows * 4 * forward.feature_dim)


STAGE = Stage(name="embed", noun="features", version=1, run=run, depends=_depends, cost=_cost)
