"""Reading images inside an actor, the unreadable ones noted: a batch, or a set onto this machine's disk."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from PIL import Image

from ims3_ray.storage.artifacts import Directory, fingerprint
from ims3_ray.storage.disk_cache import CachedRows, open_cache
from ims3_ray.storage.rows import prefetch, row_groups
from ims3_ray.storage.schemas import Columns

from .folders import READERS
from .images import ImageSet, Packed
from .transforms import decode, square

READ_ROWS = 256  # images that are read at once
READ_AHEAD = 2  # such batches, while one is written
Scale = Callable[[Image.Image, int], np.ndarray]  # image and size → pixels (3, size, size) uint8


class Payload(TypedDict):
    """A batch of images, as plain data."""

    paths: list[str]
    ids: list[str]
    labels: list[int]


def payloads(images: ImageSet, rows: Sequence[int], size: int) -> list[Payload]:
    """`rows` of the set in batches of `size`, for a `BatchReader`."""
    cut = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [
        {
            "paths": [images.paths[row] for row in batch],
            "ids": [images.ids[row] for row in batch],
            "labels": [int(images.labels[row]) for row in batch],
        }
        for batch in cut
    ]


class BatchReader:
    """Reads, decodes and scales a batch's images on threads.

    `scale`: `square` as generator and φ see images, `resize_and_crop` as classifiers do.
    """

    def __init__(self, directory: Directory, image_size: int, scale: Scale = square):
        self._directory, self._image_size, self._scale = directory, image_size, scale
        self._threads = ThreadPoolExecutor(READERS)

    def __call__(self, payload: Payload) -> tuple[np.ndarray, Columns, dict[str, str]]:
        """(pixels (N, 3, size, size) uint8, ids and labels) of readable images, {path: why} of the others."""
        read = list(self._threads.map(self._read, payload["paths"]))
        bad = {path: r for path, r in zip(payload["paths"], read, strict=True) if isinstance(r, str)}
        good = [row for row, r in enumerate(read) if not isinstance(r, str)]
        pixels = np.empty((len(good), 3, self._image_size, self._image_size), np.uint8)
        for place, row in enumerate(good):
            pixels[place] = read[row]
        known = {
            "image_id": np.array([payload["ids"][row] for row in good], dtype=object),
            "label": np.array([payload["labels"][row] for row in good], dtype=np.int64),
        }
        return pixels, known, bad

    def _read(self, path: str) -> np.ndarray | str:
        try:
            return self._scale(decode(self._directory.read(path)), self._image_size)
        except ValueError as error:
            return str(error)


def pixels_bytes(images: float, size: int) -> float:
    """What so many images, with their labels, take of a machine's disk."""
    return images * (3.0 * size**2 + 8)


@dataclass(frozen=True)
class LocalPixels:
    """A set by its keys; `open` lays its readable images on this machine's disk, in their order."""

    images: ImageSet
    image_size: int
    scale: Scale = square

    @property
    def key(self) -> str:
        return fingerprint([self.images.fingerprint, self.scale.__name__, self.image_size])

    def open(self) -> CachedRows:
        """Rows of `pixels` (3, S, S) uint8 and `label`. InputError where they do not fit the disk."""
        return open_cache(self.key, self._parts, pixels_bytes(len(self.images), self.image_size))

    def _parts(self) -> Iterator[Columns]:
        if self.images.packed:
            yield from self._unpacked(self.images.packed)
            return
        read = BatchReader(self.images.directory, self.image_size, self.scale)
        batches = payloads(self.images, range(len(self.images)), READ_ROWS)
        for pixels, known, _ in prefetch(read, batches, READ_AHEAD):
            yield {"pixels": pixels, "label": known["label"]}

    def _unpacked(self, packed: Packed) -> Iterator[Columns]:
        """From Parquet, a row group at a time: a few requests instead of one per image."""

        def scaled(image: dict[str, bytes] | bytes) -> np.ndarray:
            encoded = image if isinstance(image, bytes) else image["bytes"]  # as `datasets` keeps images
            return self.scale(decode(encoded), self.image_size)

        groups = (row_groups(self.images.directory, name, packed.column) for name in packed.files)
        start = 0
        with ThreadPoolExecutor(READERS) as threads:
            for images in itertools.chain.from_iterable(groups):
                pixels, stop = np.stack(list(threads.map(scaled, images))), start + len(images)
                yield {"pixels": pixels, "label": self.images.labels[start:stop]}
                start = stop
