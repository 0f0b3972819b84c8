"""The storage that a set takes: pixels per class, and bytes per class as PNGs."""

from collections.abc import Container, Mapping
from typing import Any

import ray
import torch

from ims3_ray.cluster.resources import CPUS_PER_ACTOR, DEFAULT_PLACEMENT
from ims3_ray.config.evaluation import Packing
from ims3_ray.data.images import ImageSet
from ims3_ray.data.loader import CachedPixels
from ims3_ray.data.transforms import encode_png, resize_and_crop
from ims3_ray.evaluation.protocols import Protocol
from ims3_ray.evaluation.results import StoredSize
from ims3_ray.method.packing import pack

MEASURED = 5000  # images per set, the first ones; larger sets are extrapolated


def stored_sizes(
    sets: Mapping[str, ImageSet], own: Container[str], size: int, rules: Protocol, packing: Packing
) -> dict[str, StoredSize]:
    """Return the storage of each set: the run's `own` at `size` pixels per side, others at the protocol's.

    In a packed run all have the same size, and tiles that are not joined are measured as if they were.
    """
    task: Any = ray.remote(num_cpus=CPUS_PER_ACTOR, **DEFAULT_PLACEMENT)(_stored_size)
    references = [
        task.remote(of_set, size if name in own else rules.image_size, packing.factor)
        for name, of_set in sets.items()
    ]
    return dict(zip(sets, ray.get(references), strict=True))


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
