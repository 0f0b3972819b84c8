"""The candidates that a selection names: found by their keys alone, the rest of their rows read by part."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ims3_ray.data.distilled import is_selected
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory, read_part
from ims3_ray.storage.index import Index, read_index

KEYS = ["label", "subgroup", "index", "seed"]


@dataclass(frozen=True)
class Chosen:
    """A candidate that was chosen, its place in its class, and where its row lies."""

    label: int
    place: int
    subgroup: int
    index: int
    seed: int
    file: str
    row: int


def chosen_rows(pool: Index, selection: Directory, classes: tuple[str, ...]) -> Index:
    """Of the pool's rows those that the selection names, in the pool's order."""
    return pool.at(np.flatnonzero(is_selected(selection.read_json("selection.json"), classes, pool.keys)))


def find_chosen(candidates: Directory, selection: Directory, classes: tuple[str, ...]) -> list[Chosen]:
    """The chosen candidates by class, subgroup and index."""
    found = chosen_rows(read_index(candidates, schemas.CANDIDATES, KEYS), selection, classes)
    files = [found.files[file] for file in found.file]
    columns = [*(found.keys[name].tolist() for name in KEYS), files, found.row.tolist()]
    places = [itertools.count() for _ in classes]
    return [Chosen(label, next(places[label]), *rest) for label, *rest in sorted(zip(*columns, strict=True))]


def read_images(candidates: Directory, chosen: Sequence[Chosen]) -> list[bytes]:
    """The PNG of each, in their order; no more than a part is in memory beside them."""
    places: dict[str, list[int]] = {}
    for place, image in enumerate(chosen):
        places.setdefault(image.file, []).append(place)
    pngs: dict[int, bytes] = {}
    for file, of_file in places.items():
        images = read_part(candidates, file, schemas.CANDIDATES, ["image"])["image"]
        pngs |= {place: images[chosen[place].row] for place in of_file}
    return [pngs[place] for place in range(len(chosen))]
