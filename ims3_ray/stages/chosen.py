"""The candidates that a selection names: found by their keys alone, read file by file."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ims3_ray.data.distilled import is_selected
from ims3_ray.storage import tables
from ims3_ray.storage.artifacts import Directory, part_names, read_part

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


def find_chosen(candidates: Directory, selection: Directory, classes: tuple[str, ...]) -> list[Chosen]:
    """The chosen candidates by class, subgroup and index."""
    document = selection.read_json("selection.json")
    rows: list[tuple[Any, ...]] = []
    for file in part_names(candidates):
        keys = read_part(candidates, file, tables.CANDIDATES, KEYS)
        kept = np.flatnonzero(is_selected(document, classes, keys))
        columns = [keys[name][kept].tolist() for name in KEYS]
        rows += [(*values, file, row) for *values, row in zip(*columns, kept.tolist(), strict=True)]
    places = [itertools.count() for _ in classes]
    return [Chosen(label, next(places[label]), *rest) for label, *rest in sorted(rows)]


def read_images(candidates: Directory, chosen: Sequence[Chosen]) -> list[bytes]:
    """The PNG of each, in their order."""
    by_file: dict[str, np.ndarray] = {}
    for file in {image.file for image in chosen}:
        rows = read_part(candidates, file, tables.CANDIDATES, ["image"])
        by_file[file] = rows["image"]
    return [by_file[image.file][image.row] for image in chosen]
