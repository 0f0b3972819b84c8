"""Embed images with the frozen extractor φ: the training images (the stage), and any set for an audit."""

from typing import Any

import numpy as np

from ims3_ray.cluster.fan_out import Part, fan_out, rows_per_part
from ims3_ray.cluster.resources import Machine
from ims3_ray.config.sections import Embed
from ims3_ray.config.settings import Evaluating
from ims3_ray.data.images import ImageSet, check_readable
from ims3_ray.data.loader import BatchReader, Payload, payloads
from ims3_ray.evaluation.audit import AuditedImages, pixel_hash
from ims3_ray.models.device import prepare_device
from ims3_ray.models.extractor import embed_pixels, load_extractor
from ims3_ray.storage.artifacts import Directory, complete, fingerprint
from ims3_ray.storage.integrity import read_or_reopen
from ims3_ray.storage.lease import exclusive
from ims3_ray.storage.rows import Index, read_index
from ims3_ray.storage.schemas import FEATURES, Column, Columns, Table

from .base import KEY_BYTES, Cost, Forward, Stage, parts_bytes, pixel_bytes, pool_usage
from .context import Context

AUDIT_VERSION = 2
# pixels: hash of the image as embedded
EMBEDDED: Table = {**FEATURES, "path": Column("str"), "pixels": Column("str")}
NOUN = "embedded"


class Embedder:
    """Maps the paths of a batch to L2-normalised features (N, D), with paths and pixel hashes if `audit`."""

    def __init__(
        self, images: Directory, extractor: str, image_size: int, batch_size: int, device: str, audit: bool
    ):
        self._device = prepare_device(device)
        self._extractor = load_extractor(extractor, self._device)
        self._read = BatchReader(images, image_size)
        self._batch_size, self._audit = batch_size, audit

    def __call__(self, payload: Payload) -> tuple[Columns, dict[str, str]]:
        pixels, columns, bad = self._read(payload)
        columns["feature"] = embed_pixels(self._extractor, pixels, self._batch_size, self._device)
        if self._audit:
            columns["path"] = np.array([path for path in payload["paths"] if path not in bad], dtype=object)
            columns["pixels"] = np.array([pixel_hash(image) for image in pixels], dtype=object)
        return columns, bad


def run(context: Context, out: Directory) -> dict[str, Any]:
    """Embed every training image at the size of candidates.

    Raises InputError if more files are unreadable than `data.max_bad_fraction` allows.
    """
    train, config = context.images["train"], context.config
    details = _fan_out(train, config.embed, context.image_size, out, context.machine)
    check_readable(train, details["notes"], "data.train", config.data.max_bad_fraction)
    return details


def embed_images(
    name: str,
    images: ImageSet,
    image_size: int,
    config: Evaluating,
    extractor_hash: str,
    storage: Directory,
    machine: Machine,
) -> tuple[AuditedImages, Index]:
    """Readable images with features and hashes, at `image_size` pixels per side; and the index of their rows.

    Computed once per storage. Raises InputError, naming `name`, if more files are unreadable than
    `data.max_bad_fraction` allows.
    """
    place, size = [images.directory.uri, images.fingerprint], config.embed.batch_size.on(machine.device)
    batches = [size, rows_per_part(len(images), size)]
    key = fingerprint([AUDIT_VERSION, *place, extractor_hash, image_size, *batches, machine.device])
    out = storage / NOUN / key
    with exclusive(out):
        manifest = read_or_reopen(out)
        if manifest is None:
            details = _fan_out(images, config.embed, image_size, out, machine, audit=True)
            manifest = complete(out, details)
    check_readable(images, manifest.get("notes", {}), name, config.data.max_bad_fraction)
    index = read_index(out, EMBEDDED, ["path", "image_id", "pixels", "label"])
    paths, ids, pixels = (index.keys[column].tolist() for column in ("path", "image_id", "pixels"))
    return AuditedImages(name, paths, index.keys["label"], ids, pixels, index.read("feature")), index


def _fan_out(
    images: ImageSet, settings: Embed, image_size: int, out: Directory, machine: Machine, audit: bool = False
) -> dict[str, Any]:
    size = settings.batch_size.on(machine.device)
    rows = rows_per_part(len(images), size)
    parts = [Part(i, len(p["paths"]), p) for i, p in enumerate(payloads(images, range(len(images)), rows))]
    arguments = {
        "images": images.directory,
        "extractor": settings.extractor,
        "image_size": image_size,
        "batch_size": size,
        "device": machine.device,
        "audit": audit,
    }
    table = EMBEDDED if audit else FEATURES
    return fan_out(Embedder, arguments, parts, table=table, out=out, machine=machine, stage="embed")


def _fingerprint_inputs(context: Context) -> object:
    inputs, settings = context.inputs, context.values_of(context.config.embed)
    if ":" not in context.config.embed.extractor:  # a path: its content counts, not its spelling
        del settings["extractor"]
    embedding = [context.image_size, context.machine.device, _part_rows(context)]
    return [inputs["images"], settings, inputs["extractor"], *embedding]


def _part_rows(context: Context) -> int:
    return rows_per_part(len(context.images["train"]), context.batch_size(context.config.embed))


def _cost(context: Context, forward: Forward) -> Cost:
    rows, row = len(context.images["train"]), 4.0 * forward.feature_dim
    memory = parts_bytes(_part_rows(context), pixel_bytes(1, context.image_size) + row)
    return Cost(rows, forward.embed, rows * row, memory, rows * KEY_BYTES)


STAGE = Stage(
    name="embed",
    output="features",
    version=2,
    run=run,
    fingerprint_inputs=_fingerprint_inputs,
    cost=_cost,
    gpu_usage=lambda context: pool_usage(context, len(context.images["train"]), _part_rows(context)),
)
