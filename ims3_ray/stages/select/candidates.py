"""What a selection chooses from, opened and checked: a run's own artefacts, or anybody's Parquet."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from pyarrow import fs

from ims3_ray.display import first_few
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory, open_directory
from ims3_ray.storage.rows import part_names

from .features import FEATURE, FeatureTable

CLASS_COLUMNS = ("class", "label")  # the second is what a run's own artefacts call it
CANDIDATE_KEYS, REAL_KEYS = ("subgroup", "index"), ()


@dataclass(frozen=True)
class Candidates:
    """Candidates and real images of the same classes, checked against each other."""

    candidates: FeatureTable
    real: FeatureTable
    classes: tuple[int | str, ...]  # sorted: a class's id is its place
    num_images: np.ndarray  # (C,) candidates
    num_subgroups: np.ndarray  # (C,)


def open_candidates(
    candidates: str | Directory, real: str | Directory, names: tuple[str, str], **below: int | None
) -> Candidates:
    """The pool in two tables, see open_features; `names` are theirs in errors.

    `below` limits the candidates' keys: with subgroup=5 and index=10 those of the first 5 subgroups and 10
    images count.

    Raises InputError for what can't be read, for tables that do not fit each other, and for candidates that
    stand twice.
    """
    limits = tuple((key, limit) for key, limit in below.items() if limit is not None)
    pool = replace(open_features(candidates, names[0], CANDIDATE_KEYS), below=limits)
    return _check_tables(pool, open_features(real, names[1], REAL_KEYS))


def _check_tables(candidates: FeatureTable, real: FeatureTable) -> Candidates:
    if candidates.width != real.width:
        raise InputError(
            f"{real.name}: features have {real.width} values, those of {candidates.name} {candidates.width}; "
            "extract both with one model"
        )
    rows, of_real = candidates.index(), real.index()
    classes, real_classes = rows.classes, of_real.classes
    if {type(c) for c in classes} != {type(c) for c in real_classes}:
        raise InputError(
            f"{real.name}: classes are {type(real_classes[0]).__name__}, those of {candidates.name} "
            f"{type(classes[0]).__name__}; write them alike"
        )
    if missing := sorted(set(classes) - set(real_classes)):
        raise InputError(
            f"{real.name}: no real image of class {first_few(missing)}, which has candidates; add some"
        )
    if missing := sorted(set(real_classes) - set(classes)):
        raise InputError(
            f"{candidates.name}: no candidate of class {first_few(missing)}, which has real images; add some"
        )
    for key, values in rows.keys.items():
        if odd := [int(end) for end in (values.min(), values.max()) if not 0 <= end < 2**63]:
            raise InputError(f"{candidates.name}: column {key} holds {odd[0]}; number from 0 upwards")
    subgroup, index = (rows.keys[key].astype(np.int64) for key in CANDIDATE_KEYS)
    order = np.lexsort((index, subgroup, rows.places))
    ordered = np.stack([rows.places[order], subgroup[order], index[order]])
    if (twice := np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).all(axis=0))).size:
        at, g, k = ordered[:, twice[0]]
        raise InputError(
            f"{candidates.name}: class {classes[at]}, subgroup {g}, index {k} stands twice; keep one row"
        )
    # row of each subgroup
    first = np.flatnonzero(np.r_[True, (ordered[:2, 1:] != ordered[:2, :-1]).any(axis=0)])
    num_images, num_subgroups = np.bincount(rows.places), np.bincount(ordered[0][first])
    located = candidates.located(rows), real.located(of_real)
    return Candidates(*located, tuple(classes), num_images, num_subgroups)


def open_features(location: str | Directory, name: str, keys: tuple[str, ...]) -> FeatureTable:
    """The table at a path or URI: a Parquet file, or a folder of them at any depth.

    Raises InputError for what is missing or is no Parquet, and for columns that are missing or of the wrong
    kind.
    """
    directory = open_directory(location) if isinstance(location, str) else location
    location = directory.uri
    path = directory.path
    try:
        kind = directory.kind
        files = [path] if kind == fs.FileType.File else [f"{path}/{n}" for n in part_names(directory)]
    except OSError as error:
        raise InputError(f"{name}: {location} can't be read: {' '.join(str(error).split())}") from error
    if not files:
        missing = kind == fs.FileType.NotFound
        raise InputError(
            f"{name}: {location} {'does not exist' if missing else 'holds no .parquet file'}; name one"
        )

    def look() -> tuple[pa.Schema, pa.Table]:
        dataset = pads.dataset(files, format="parquet", filesystem=directory.filesystem)
        return dataset.schema, dataset.head(1, columns=[FEATURE] if FEATURE in dataset.schema.names else [])

    try:
        schema, first = directory.with_retries(look)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"{name}: {location} is no readable Parquet: {' '.join(str(error).split())[:200]}"
        ) from error
    class_column = _check_columns(schema, name, keys)
    if not len(first):
        raise InputError(f"{name}: {location} has no rows")
    cell = first[FEATURE].chunk(0)
    cell = cell.storage if isinstance(cell, pa.ExtensionArray) else cell
    width = pc.call_function("list_value_length", [cell])[0].as_py()
    if not width:
        raise InputError(f"{name}: the first row's feature is empty; extract it again or remove the row")
    return FeatureTable(name, directory, tuple(files), schema, class_column, keys, width)


def _check_columns(schema: pa.Schema, name: str, keys: tuple[str, ...]) -> str:
    """The name of the class column."""
    columns = {field.name: field.type for field in schema}
    class_column = next((c for c in CLASS_COLUMNS if c in columns), "")
    if missing := ([] if class_column else ["class"]) + [c for c in (*keys, FEATURE) if c not in columns]:
        raise InputError(f"{name}: no column {', '.join(missing)}; it holds {', '.join(columns)}")
    of_class = columns[class_column]
    if not (
        pa.types.is_integer(of_class) or pa.types.is_string(of_class) or pa.types.is_large_string(of_class)
    ):
        raise InputError(f"{name}: column {class_column} holds {of_class}; classes are strings or integers")
    for key in keys:
        if not pa.types.is_integer(columns[key]):
            raise InputError(f"{name}: column {key} holds {columns[key]}; it must hold integers")
    feature = columns[FEATURE]
    feature = feature.storage_type if isinstance(feature, pa.BaseExtensionType) else feature
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(check(feature) for check in lists) or not pa.types.is_floating(feature.value_type):
        raise InputError(f"{name}: column feature holds {columns[FEATURE]}; it must hold lists of float32")
    return class_column
