"""Features in Parquet, read by class: a run's own candidates and real images, or anybody's.

    candidates   class (or label), subgroup, index, feature (D) real         class (or label), feature (D): a
    row a real image, or a row a class where they are centroids already

Classes are strings or integers, features lists of numbers of one length. What is read is what a class needs:
row groups without it are skipped, so that files sorted by class cost a reader its own classes alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from pyarrow import fs

from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory, open_directory, part_names
from ims3_ray.text import some

CLASS_COLUMNS = ("class", "label")  # the second is what a run's own artefacts call it
FEATURE = "feature"
CANDIDATE_KEYS, REAL_KEYS = ("subgroup", "index"), ()
FILES = 256  # that are open at once: a data set keeps the footers of all of its files
Keys = dict[str, np.ndarray]  # of rows, by column


@dataclass(frozen=True)
class FeatureTable:
    """Where the rows of a table lie. `name` stands in every error."""

    name: str
    directory: Directory
    files: tuple[str, ...]
    class_column: str
    keys: tuple[str, ...]
    width: int  # D
    below: tuple[tuple[str, int], ...] = ()  # (key, limit): rows whose key is not below it count for nothing

    def index(self) -> tuple[list, np.ndarray, dict[str, np.ndarray]]:
        """The classes, sorted; of every row, in the files' order, its class's place among them (N,), and its
        keys (N,).
        """
        table = self._rows([self.class_column, *self.keys])
        for name in table.column_names:
            if table[name].null_count:
                raise InputError(
                    f"{self.name}: column {name} has {table[name].null_count} empty values; fill or drop them"
                )
        encoded = table[self.class_column].combine_chunks().dictionary_encode()
        found = encoded.dictionary.to_pylist()
        classes = sorted(found)
        place = {value: i for i, value in enumerate(classes)}
        places = np.array([place[value] for value in found], dtype=np.int64)[encoded.indices.to_numpy()]
        return classes, places, {name: self._values(table, name) for name in self.keys}

    def read(
        self, classes: Sequence, limit: int | None = None
    ) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """For each of `classes`, in their order, its keys and its features (n, D) float32, in the order of
        the keys.

        At most `limit` rows are in memory at a time, and never fewer than a class. Raises InputError, naming
        the row, for a feature of another length than the first, of NaN or infinity, or of zeros.
        """
        for batch in self._batches(classes, limit):
            wanted = pc.field(self.class_column).isin(pa.array(list(batch)))
            table = self._rows([self.class_column, *self.keys, FEATURE], wanted)
            of_rows = self._values(table, self.class_column)
            keys = {name: self._values(table, name) for name in self.keys}
            features = self._features(table[FEATURE], of_rows, keys)
            del table
            order = np.lexsort((*reversed(list(keys.values())), of_rows))
            for value in batch:
                rows = order[
                    np.searchsorted(of_rows[order], value, "left") : np.searchsorted(
                        of_rows[order], value, "right"
                    )
                ]
                yield {name: column[rows] for name, column in keys.items()}, features[rows]

    def _batches(self, classes: Sequence, limit: int | None) -> Iterator[list]:
        if limit is None:
            yield list(classes)
            return
        counted = self._rows([self.class_column])[self.class_column].value_counts().to_pylist()
        rows_of = {entry["values"]: entry["counts"] for entry in counted}
        batch, rows = [], 0
        for value in classes:
            if batch and rows + rows_of[value] > limit:
                yield batch
                batch, rows = [], 0
            batch.append(value)
            rows += rows_of[value]
        yield batch

    def _rows(self, columns: list[str], wanted: pc.Expression | None = None) -> pa.Table:
        for name, limit in self.below:
            within = pc.field(name) < limit
            wanted = within if wanted is None else wanted & within

        def read() -> pa.Table:
            given = {"format": "parquet", "filesystem": self.directory.filesystem}
            given["schema"] = pads.dataset(self.files[0], **given).schema
            some = (list(self.files[at : at + FILES]) for at in range(0, len(self.files), FILES))
            return pa.concat_tables(
                pads.dataset(files, **given).to_table(columns=columns, filter=wanted) for files in some
            )

        return self.directory.patiently(read)

    def _values(self, table: pa.Table, name: str) -> np.ndarray:
        values = table[name].to_numpy()
        return values.astype(str) if values.dtype == object else values

    def _features(
        self, column: pa.ChunkedArray, classes: np.ndarray, keys: dict[str, np.ndarray]
    ) -> np.ndarray:
        def at(row: int) -> str:
            return ", ".join(
                [f"class {classes[row]!s}", *(f"{name} {values[row]}" for name, values in keys.items())]
            )

        features, start = np.empty((len(column), self.width), np.float32), 0
        for chunk in column.chunks:
            chunk = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
            lengths = (
                pc.call_function("list_value_length", [chunk]).fill_null(0).to_numpy(zero_copy_only=False)
            )
            if (wrong := np.flatnonzero(lengths != self.width)).size:
                row = int(wrong[0])
                raise InputError(
                    f"{self.name}: the feature of {at(start + row)} has {lengths[row]} values, "
                    f"the first row's {self.width}; extract all features with one model"
                )
            values = chunk.flatten().to_numpy(zero_copy_only=False)  # an empty value becomes NaN
            features[start : start + len(chunk)] = values.reshape(len(chunk), self.width)
            start += len(chunk)
        norms = np.einsum("nd,nd->n", features, features, dtype=np.float64)
        if (wrong := np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))).size:
            row = int(wrong[0])
            what = "zero" if norms[row] == 0 else "not finite"
            raise InputError(
                f"{self.name}: the feature of {at(row)} is {what}; extract it again or remove the row"
            )
        return features


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
    classes, places, keys = candidates.index()
    real_classes = real.index()[0]
    if {type(c) for c in classes} != {type(c) for c in real_classes}:
        raise InputError(
            f"{real.name}: classes are {type(real_classes[0]).__name__}, those of {candidates.name} "
            f"{type(classes[0]).__name__}; write them alike"
        )
    if missing := sorted(set(classes) - set(real_classes)):
        raise InputError(
            f"{real.name}: no real image of class {some(missing)}, which has candidates; add some"
        )
    if missing := sorted(set(real_classes) - set(classes)):
        raise InputError(
            f"{candidates.name}: no candidate of class {some(missing)}, which has real images; add some"
        )
    subgroup, index = keys["subgroup"], keys["index"]
    order = np.lexsort((index, subgroup, places))
    ordered = np.stack([places[order], subgroup[order], index[order]])
    if (twice := np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).all(axis=0))).size:
        at, g, k = ordered[:, twice[0]]
        raise InputError(
            f"{candidates.name}: class {classes[at]}, subgroup {g}, index {k} stands twice; keep one row"
        )
    # row of each subgroup
    first = np.flatnonzero(np.r_[True, (ordered[:2, 1:] != ordered[:2, :-1]).any(axis=0)])
    return Candidates(candidates, real, tuple(classes), np.bincount(places), np.bincount(ordered[0][first]))


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
        schema, first = directory.patiently(look)
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
    return FeatureTable(name, directory, tuple(files), class_column, keys, width)


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
