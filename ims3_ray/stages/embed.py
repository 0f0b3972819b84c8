"""Embed the real training images with the frozen extractor φ. Reads images, makes features."""

from typing import Any

from .. import tables
from ..artifacts import Directory
from ..context import Context
from ..data.reading import BatchReader, payloads
from ..fanout import Part, fan_out
from ..models.device import prepare_device
from ..models.features import embed_pixels, load_extractor
from ..tables import Columns

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
    made = fan_out(Embedder, arguments, parts, table=tables.FEATURES, out=out, machine=context.machine, stage="embed")
    return made | {"bad_images": train.bad | made.pop("notes")}


class Embedder:
    """Paths of a batch → features (N, D), L2-normalised."""

    def __init__(self, images: Directory, extractor: str, image_size: int, batch_size: int, device: str):
        self._device = prepare_device(device)
        self._extractor = load_extractor(extractor, self._device)
        self._read = BatchReader(images, image_size)
        self._batch_size = batch_size

    def __call__(self, payload: dict) -> tuple[Columns, dict[str, str]]:
        pixels, columns, bad = self._read(payload)
        columns["feature"] = embed_pixels(self._extractor, pixels, self._batch_size, self._device)
        return columns, bad
