"""Packed sets on disk: the factor that a set states, and its images unpacked into class folders."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from ims3_ray.errors import InputError
from ims3_ray.method.packing import INTERPOLATION, unpack
from ims3_ray.storage.artifacts import Directory

from .images import Tiles
from .sources import FACTOR, PARQUET, STATEMENT, Batch, ClassNames, Rows, read_rows
from .transforms import decode, png_of
from .unpacking import unpack_batches

CARD = "README.md"
IN_CARD = re.compile(rf"^{FACTOR}: *(\d+) *$", re.MULTILINE)


def packing_statement(tiles: Tiles) -> dict[str, object]:
    """Returns distilled.json: how the set's images are unpacked."""
    side = tiles.factor * tiles.side
    return {FACTOR: tiles.factor, "image_size": side, "interpolation": INTERPOLATION}


def packed_card(card: str, tiles: Tiles) -> str:
    """Returns the card of a packed set: with its factor, and how to unpack it."""
    head, _, text = card.partition("\n---\n")
    size = tiles.factor * tiles.side
    return f"""{head}
{FACTOR}: {tiles.factor}
---
{text}
## Packed images

Each image of {size} × {size} pixels holds {tiles.factor} × {tiles.factor} smaller ones, row by row. Cut it \
into these and enlarge each to {size} pixels ({INTERPOLATION}, corners not aligned) before training; \
`ims3_ray.load_distilled` does so. The set trains as {tiles.factor**2} times as many images (Kim et al. 2022).
"""


def packing_factor(directory: Directory) -> int:
    """Returns the f that a distilled set states; 1 if it is not packed.

    Raises InputError if distilled.json is damaged, or the card states another factor.
    """
    factor = 1
    if directory.exists(STATEMENT):
        try:
            factor = _factor(json.loads(directory.read(STATEMENT)))
        except ValueError as error:
            raise InputError(f"{directory.uri}: {STATEMENT} {error}; restore the file") from error
    if directory.exists(CARD):
        found = IN_CARD.search(directory.read(CARD).decode(errors="replace"))
        of_card = int(found[1]) if found else 1
        if of_card != factor:
            raise InputError(
                f"{directory.uri}: {STATEMENT} states {FACTOR} {factor}, {CARD} {of_card}; restore the files"
            )
    return factor


def _factor(statement: Any) -> int:
    factor = statement.get(FACTOR) if isinstance(statement, Mapping) else None
    if not isinstance(factor, int) or not 1 <= factor <= 16:
        raise ValueError(f"states no {FACTOR} from 1 to 16")
    return factor


def unpack_set(directory: Directory, storage: Directory, where: str, classes: ClassNames) -> Directory:
    """Returns class folders below `storage` with the tiles of a packed set, enlarged to its images' size.

    `classes` filters the images. Raises InputError if a file of the set is damaged or missing, or f does not
    divide an image's size.
    """
    factor = packing_factor(directory)
    rows = Rows(directory, ((directory / PARQUET).path,), is_parquet=True)
    info, *_ = directory.infos(rows.files)
    identity = ["packed", directory.uri, info.size, info.mtime_ns, factor, classes and sorted(classes)]

    def batches() -> Iterator[Batch]:
        for labels, images, names in read_rows(rows, where, factor):
            tiles = (tile for image in images for tile in unpacked(image["bytes"], factor, where))
            yield np.repeat(labels, factor**2).tolist(), [png_of(tile) for tile in tiles], names

    return unpack_batches(batches, identity, storage, where, classes, None)


def unpacked(png: bytes, factor: int, where: str) -> list[Image.Image]:
    """Returns a stored image's tiles, enlarged to its size. Raises InputError if f does not divide that."""
    try:
        image = decode(png)
    except ValueError as error:
        raise InputError(f"{where}: an image {error}; restore the file") from error
    if factor == 1:
        return [image]
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None]
    try:
        tiles = unpack(pixels, factor, image.height)
    except ValueError as error:
        raise InputError(f"{where}: {error}; its {FACTOR} is wrong") from error
    return [Image.fromarray(tile.permute(1, 2, 0).numpy()) for tile in tiles]
