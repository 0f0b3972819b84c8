"""Reads and scales images in an actor: a batch, or a whole set onto this machine's disk."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
import torch
from PIL import Image
from PIL import __version__ as PILLOW

from ims3_ray.method.packing import unpack
from ims3_ray.storage.artifacts import Directory, fingerprint
from ims3_ray.storage.disk_cache import CachedRows, open_cache
from ims3_ray.storage.rows import prefetch, row_groups
from ims3_ray.storage.schemas import Columns

from .folders import READERS
from .images import ImageSet, ParquetRows, check_bad, open_images
from .sources import Batch
from .transforms import decode, encode_png, resize_and_crop, square
from .unpacking import unpack_batches

READ_ROWS = 256  # images per batch when a set is cached
READ_AHEAD = 2  # batches
CACHE_VERSION = 1  # raised if the cached pixels of the same images differ
Scale = Callable[[Image.Image, int], np.ndarray]  # image and size → pixels (3, size, size) uint8


class Payload(TypedDict):
    """A batch of images as plain data."""

    paths: list[str]
    ids: list[str]
    labels: list[int]


def payloads(images: ImageSet, rows: Sequence[int], size: int) -> list[Payload]:
    """Returns `rows` of the set in batches of `size`, for a `BatchReader`."""
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [
        {
            "paths": [images.paths[row] for row in batch],
            "ids": [images.ids[row] for row in batch],
            "labels": [int(images.labels[row]) for row in batch],
        }
        for batch in batches
    ]


class BatchReader:
    """Reads, decodes and scales a batch of images on threads.

    `scale`: `square` for the generator and φ, `resize_and_crop` for classifiers.
    """

    def __init__(self, directory: Directory, image_size: int, scale: Scale = square):
        self._directory, self._image_size, self._scale = directory, image_size, scale
        self._threads = ThreadPoolExecutor(READERS)

    def __call__(self, payload: Payload) -> tuple[np.ndarray, Columns, dict[str, str]]:
        """Returns pixels (N, 3, size, size) uint8, ids and labels of readable images, and {bad path: why}."""
        results = list(self._threads.map(self._read, payload["paths"]))
        bad = {path: r for path, r in zip(payload["paths"], results, strict=True) if isinstance(r, str)}
        good = [row for row, r in enumerate(results) if not isinstance(r, str)]
        pixels = np.empty((len(good), 3, self._image_size, self._image_size), np.uint8)
        for place, row in enumerate(good):
            pixels[place] = results[row]
        keys = {
            "image_id": np.array([payload["ids"][row] for row in good], dtype=object),
            "label": np.array([payload["labels"][row] for row in good], dtype=np.int64),
        }
        return pixels, keys, bad

    def _read(self, path: str) -> np.ndarray | str:
        data = self._directory.read(path)  # an outage of the storage is no bad image
        try:
            return self._scale(decode(data), self._image_size)
        except ValueError as error:
            return str(error)


def scale_images(images: ImageSet, size: int, storage: Directory, max_bad_fraction: float) -> ImageSet:
    """Returns the set scaled to `size` pixels as for classifiers: read once, then PNGs below `storage`.

    Raises InputError if more than `max_bad_fraction` of the files cannot be read.
    """

    def batches() -> Iterator[Batch]:
        read, lost = BatchReader(images.directory, size, resize_and_crop), dict[str, str]()
        for pixels, keys, bad in prefetch(read, payloads(images, range(len(images)), READ_ROWS), READ_AHEAD):
            yield [images.classes[label] for label in keys["label"]], list(map(encode_png, pixels)), None
            lost |= bad
        check_bad("data.train", images.place, lost, len(images), max_bad_fraction)

    identity, place = ["scaled-2", images.fingerprint, size, max_bad_fraction], images.place
    folder = unpack_batches(batches, identity, storage, place, None, None)
    shared = {"name": "data.train", "seed": 0, "max_bad_fraction": max_bad_fraction}
    return replace(open_images(folder.uri, storage, **shared), unpacked_from=place, bad=images.bad)


def pixels_bytes(images: float, size: int) -> float:
    """Returns the disk space that images with their labels take in the cache."""
    return images * (3.0 * size**2 + 8)


@dataclass(frozen=True)
class CachedPixels:
    """A set whose readable images `open` puts onto this machine's disk, in the set's order."""

    images: ImageSet
    image_size: int
    scale: Scale = square

    @property
    def key(self) -> str:
        return fingerprint(
            [CACHE_VERSION, PILLOW, self.images.fingerprint, self.scale.__name__, self.image_size]
        )

    def open(self) -> CachedRows:
        """Returns rows of `pixels` (3, S, S) uint8 and `label`. Raises InputError if they exceed the disk."""
        size = pixels_bytes(self.images.num_trained, self.image_size)
        return open_cache(self.key, self._trained, size)

    def _trained(self) -> Iterator[Columns]:
        """The images that a classifier trains on: enlarged tiles, if the set is packed."""
        tiles = self.images.tiles
        if tiles is None:
            yield from self.stored(self.image_size)
            return
        for part in self.stored(tiles.factor * tiles.side):
            pixels = unpack(torch.from_numpy(part["pixels"]), tiles.factor, self.image_size)
            yield {"pixels": pixels.numpy(), "label": part["label"].repeat(tiles.factor**2)}

    def stored(self, size: int) -> Iterator[Columns]:
        """Yields the set's own images, scaled to `size` pixels per side."""
        if self.images.parquet:
            yield from self._of_parquet(self.images.parquet, size)
            return
        read = BatchReader(self.images.directory, size, self.scale)
        batches = payloads(self.images, range(len(self.images)), READ_ROWS)
        for pixels, keys, _ in prefetch(read, batches, READ_AHEAD):
            yield {"pixels": pixels, "label": keys["label"]}

    def _of_parquet(self, parquet: ParquetRows, size: int) -> Iterator[Columns]:
        """Reads Parquet by row group: a few requests instead of one per image."""

        def scaled(image: dict[str, bytes] | bytes) -> np.ndarray:
            encoded = image if isinstance(image, bytes) else image["bytes"]  # a struct as in `datasets`
            return self.scale(decode(encoded), size)

        groups = (row_groups(self.images.directory, name, parquet.column) for name in parquet.files)
        start = 0
        with ThreadPoolExecutor(READERS) as threads:
            for images in itertools.chain.from_iterable(groups):
                pixels, stop = np.stack(list(threads.map(scaled, images))), start + len(images)
                yield {"pixels": pixels, "label": self.images.labels[start:stop]}
                start = stop
