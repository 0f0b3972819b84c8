"""The storage that a set takes: pixels per class, and bytes per class as PNGs."""

from collections.abc import Mapping
from typing import Any

import ray
import torch

from ims3_ray.cluster.resources import CPUS_PER_ACTOR, DEFAULT_PLACEMENT
from ims3_ray.data.images import ImageSet
from ims3_ray.data.loader import CachedPixels
from ims3_ray.data.transforms import encode_png, resize_and_crop
from ims3_ray.evaluation.results import StoredSize
from ims3_ray.method.packing import pack

MEASURED = 5000  # images per set, the first ones; larger sets are extrapolated


def stored_sizes(sets: Mapping[str, ImageSet], size: int, factor: int) -> dict[str, StoredSize]:
    """Return the storage of each set, as images of `size` pixels per side.

    `factor` is that of packed sets; a set whose tiles are not joined is measured as if they were.
    """
    task: Any = ray.remote(num_cpus=CPUS_PER_ACTOR, **DEFAULT_PLACEMENT)(_stored_size)
    return dict(
        zip(sets, ray.get([task.remote(of_set, size, factor) for of_set in sets.values()]), strict=True)
    )


def _stored_size(images: ImageSet, size: int, factor: int) -> StoredSize:
    side = images.tiles.factor * images.tiles.side if images.tiles else size
    joined = factor if images.tiles and images.tiles.factor == 1 else 1
    measured, total = 0, 0
    for part in CachedPixels(images, size, resize_and_crop).stored(side):
        whole = len(part["pixels"]) // joined**2 * joined**2
        stored = pack(torch.from_numpy(part["pixels"][:whole]), joined).numpy()
        total += sum(len(encode_png(image)) for image in stored)
        measured += whole
        if measured >= MEASURED:
            break
    classes = len(images.classes)
    return {
        "pixels": len(images) * side**2 // classes,
        "bytes": round(total * len(images) / measured / classes),
    }
