"""Open and check the tables of a selection: a run's own artefacts, or the Parquet files of other tools."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from pyarrow import fs

from ims3_ray.config.sections import Select
from ims3_ray.display import first_few, one_line
from ims3_ray.errors import InputError
from ims3_ray.method.s3.objective import Objective
from ims3_ray.storage.artifacts import Directory, open_directory
from ims3_ray.storage.rows import part_names

from .features import FEATURE, FORMAT, FeatureTable

CLASS_COLUMNS = ("class", "label")  # artefacts of a run have the second
CANDIDATE_KEYS, REAL_KEYS = ("subgroup", "index"), ()


@dataclass(frozen=True)
class Candidates:
    """Candidates and real images of the same classes, checked against each other."""

    candidates: FeatureTable
    real: FeatureTable
    classes: tuple[int | str, ...]  # sorted: the id of a class is its place
    num_images: np.ndarray  # (C,) candidates
    num_subgroups: np.ndarray  # (C,)


@dataclass(frozen=True)
class SelectionInput:
    """The tables and settings of a selection. `names` has the class names in the order of the class ids."""

    pool: Candidates
    names: tuple[str, ...]
    settings: Select
    ipc: int
    seed: int

    @property
    def objective(self) -> Objective:
        s = self.settings
        return Objective(s.alpha, s.beta, s.epsilon, s.normalization, s.coverage)


def open_candidates(
    candidates: str | Directory, real: str | Directory, names: tuple[str, str], **below: int | None
) -> Candidates:
    """Open both tables, see open_features; `names` are their names in errors.

    `below` limits the keys of candidates: subgroup=5 and index=10 use the first 5 subgroups and 10 images.
    Raises InputError for unreadable tables, tables that do not fit each other, and duplicate candidates.
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
    rows, real_rows = candidates.index(), real.index()
    classes, real_classes = rows.classes, real_rows.classes
    if {type(c) for c in classes} != {type(c) for c in real_classes}:
        kinds = [type(names[0]).__name__ for names in (real_classes, classes)]
        raise InputError(
            f"{real.name}: classes are {kinds[0]}, those of {candidates.name} {kinds[1]}; use one type"
        )
    if missing := sorted(set(classes) - set(real_classes)):
        raise InputError(f"{real.name}: no real image of class {first_few(missing)}; add some")
    if missing := sorted(set(real_classes) - set(classes)):
        raise InputError(f"{candidates.name}: no candidate of class {first_few(missing)}; add some")
    for key, values in rows.keys.items():
        if wrong := [int(end) for end in (values.min(), values.max()) if not 0 <= end < 2**63]:
            raise InputError(f"{candidates.name}: column {key} holds {wrong[0]}; number from 0 upwards")
    subgroup, index = (rows.keys[key].astype(np.int64) for key in CANDIDATE_KEYS)
    order = np.lexsort((index, subgroup, rows.places))
    ordered = np.stack([rows.places[order], subgroup[order], index[order]])
    if (twice := np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).all(axis=0))).size:
        place, g, k = ordered[:, twice[0]]
        raise InputError(
            f"{candidates.name}: class {classes[place]}, subgroup {g}, index {k} occurs twice; keep one row"
        )
    first_rows = np.flatnonzero(
        np.r_[True, (ordered[:2, 1:] != ordered[:2, :-1]).any(axis=0)]
    )  # of subgroups
    return Candidates(
        candidates.with_index(rows),
        real.with_index(real_rows),
        tuple(classes),
        num_images=np.bincount(rows.places),
        num_subgroups=np.bincount(ordered[0][first_rows]),
    )


def open_features(location: str | Directory, name: str, keys: tuple[str, ...]) -> FeatureTable:
    """Open the table at a path or URI: a Parquet file, or a folder of them at any depth.

    Raises InputError if it is missing or no Parquet, and if a column is missing or has the wrong type.
    """
    directory = open_directory(location) if isinstance(location, str) else location
    location, path = directory.uri, directory.path
    try:
        kind = directory.kind
        files = [path] if kind == fs.FileType.File else [f"{path}/{n}" for n in part_names(directory)]
    except OSError as error:
        raise InputError(f"{name}: {location} can't be read: {one_line(str(error))}") from error
    if not files:
        problem = "does not exist" if kind == fs.FileType.NotFound else "holds no .parquet file"
        raise InputError(f"{name}: {location} {problem}; name one")

    def read_first() -> tuple[pa.Schema, pa.Table]:
        dataset = pads.dataset(files, format=FORMAT, filesystem=directory.filesystem)
        return dataset.schema, dataset.head(1, columns=[FEATURE] if FEATURE in dataset.schema.names else [])

    try:
        schema, first = directory.with_retries(read_first)
    except (pa.ArrowException, OSError) as error:
        why = one_line(str(error))[:200]
        raise InputError(f"{name}: {location} is no readable Parquet: {why}") from error
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
    """Return the name of the class column."""
    columns = {field.name: field.type for field in schema}
    class_column = next((c for c in CLASS_COLUMNS if c in columns), "")
    if missing := ([] if class_column else ["class"]) + [c for c in (*keys, FEATURE) if c not in columns]:
        raise InputError(f"{name}: no column {', '.join(missing)}; it holds {', '.join(columns)}")
    types = pa.types
    feature = columns[FEATURE]
    feature = feature.storage_type if isinstance(feature, pa.BaseExtensionType) else feature
    is_list = any(check(feature) for check in (types.is_list, types.is_large_list, types.is_fixed_size_list))
    is_class = any(
        check(columns[class_column]) for check in (types.is_integer, types.is_string, types.is_large_string)
    )
    rules = [
        (class_column, is_class, "strings or integers"),
        *((key, types.is_integer(columns[key]), "integers") for key in keys),
        (FEATURE, is_list and types.is_floating(feature.value_type), "lists of float32"),
    ]
    for column, fits, expected in rules:
        if not fits:
            raise InputError(f"{name}: column {column} holds {columns[column]}; it must hold {expected}")
    return class_column
