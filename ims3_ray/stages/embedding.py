"""Features of images by the frozen extractor φ, and of any set the hashes of its decoded pixels in the same
pass.
"""

import numpy as np

from ims3_ray.cluster.fan_out import Part, fan_out
from ims3_ray.cluster.machine import Machine
from ims3_ray.config.sections import Embed
from ims3_ray.data.images import ImageSet, check_bad
from ims3_ray.data.reading import BatchReader, payloads
from ims3_ray.evaluation.audit import AuditedImages, pixel_hash
from ims3_ray.models.device import prepare_device
from ims3_ray.models.extractor import embed_pixels, load_extractor
from ims3_ray.storage.artifacts import Directory, fingerprint, read_rows
from ims3_ray.storage.tables import FEATURES, Column, Columns

VERSION = 1
# pixels: hash of the decoded image as embedded
EMBEDDED = FEATURES | {"path": Column("str"), "pixels": Column("str")}
NOUN = "embedded"


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
        return columns | self._more(payload, pixels, bad), bad

    def _more(self, payload: dict, pixels: np.ndarray, bad: dict[str, str]) -> Columns:
        return {}


class HashingEmbedder(Embedder):
    """Paths of a batch → rows of EMBEDDED."""

    def _more(self, payload: dict, pixels: np.ndarray, bad: dict[str, str]) -> Columns:
        paths = np.array([path for path in payload["paths"] if path not in bad], dtype=object)
        return {"path": paths, "pixels": np.array([pixel_hash(image) for image in pixels], dtype=object)}


def embed_images(
    images: ImageSet,
    settings: Embed,
    extractor_hash: str,
    storage: Directory,
    machine: Machine,
    *,
    name: str,
    image_size: int,
    max_bad_fraction: float,
) -> AuditedImages:
    """The set's readable images with features and hashes, at `image_size` pixels a side; made once for a
    storage.

    Raises InputError, with `name`, where more than `max_bad_fraction` of the files turn out to be unreadable.
    """
    size = settings.batch_size.on(machine.device)
    key = fingerprint(
        [VERSION, images.directory.uri, images.fingerprint, extractor_hash, image_size, size, machine.device]
    )
    out = storage / NOUN / key
    parts = [Part(i, len(p["paths"]), p) for i, p in enumerate(payloads(images, range(len(images)), size))]
    arguments = {
        "images": images.directory,
        "extractor": settings.extractor,
        "image_size": image_size,
        "batch_size": size,
        "device": machine.device,
    }
    made = fan_out(HashingEmbedder, arguments, parts, table=EMBEDDED, out=out, machine=machine, stage="embed")
    bad = images.bad | made["notes"]
    check_bad(name, images.place, bad, len(images) + len(images.bad), max_bad_fraction)
    rows = read_rows(out, EMBEDDED)
    return AuditedImages(
        name,
        rows["path"].tolist(),
        rows["label"],
        rows["image_id"].tolist(),
        rows["pixels"].tolist(),
        rows["feature"],
    )
