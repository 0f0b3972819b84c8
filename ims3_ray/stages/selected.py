"""Find the candidates that a selection names, by their keys only, and read their images part by part."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ims3_ray.data.distilled import is_selected
from ims3_ray.storage import schemas
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.rows import Index, locate, read_index

KEYS = ["label", "subgroup", "index", "seed"]
REAL = -1  # seed of a candidate that is a real image


@dataclass(frozen=True)
class SelectedCandidate:
    """A selected candidate, its place within its class, and the file and row that hold it."""

    label: int
    place: int
    subgroup: int
    index: int
    seed: int
    file: str
    row: int


def selected_rows(pool: Index, selection: Directory, classes: tuple[str, ...]) -> Index:
    """The rows of the pool that the selection names, in the pool's order."""
    return pool.take(np.flatnonzero(is_selected(selection.read_json("selection.json"), classes, pool.keys)))


def find_selected(
    candidates: Directory, selection: Directory, classes: tuple[str, ...]
) -> list[SelectedCandidate]:
    """The selected candidates, ordered by class, subgroup and index."""
    index = selected_rows(read_index(candidates, schemas.CANDIDATES, KEYS), selection, classes)
    files = [index.files[file] for file in index.file]
    columns = [*(index.keys[name].tolist() for name in KEYS), files, index.row.tolist()]
    places = [itertools.count() for _ in classes]
    rows = sorted(zip(*columns, strict=True))
    return [SelectedCandidate(label, next(places[label]), *rest) for label, *rest in rows]


def read_images(candidates: Directory, selected: Sequence[SelectedCandidate]) -> list[bytes]:
    """Returns the PNG of each candidate, in order. At most one part is in memory beside them."""
    places = [(candidate.file, candidate.row) for candidate in selected]
    return locate(candidates, schemas.CANDIDATES, places, "image").read().tolist()
