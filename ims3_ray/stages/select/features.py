"""Tables of features in Parquet, read class by class: a run's own artefacts, or tables of other tools.

    candidates   class (or label), subgroup, index, feature (D)
    real         class (or label), feature (D): one row per real image, or one centroid per class

Classes are strings or integers; features are lists of one length. An artefact's index names the files of each
class. In other tables, row groups without the class are skipped, so sort these files by class.
"""

import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from pyarrow import fs

from ims3_ray.display import one_line
from ims3_ray.errors import InputError
from ims3_ray.storage.artifacts import Directory
from ims3_ray.storage.rows import FILE, file_places, stored_keys

FEATURE = "feature"
FORMAT = pads.ParquetFileFormat(  # our own files have page checksums
    default_fragment_scan_options=pads.ParquetFragmentScanOptions(page_checksum_verification=True)
)
MAX_OPEN_FILES = 256  # per data set, which keeps the footers of all of its files
Keys = dict[str, np.ndarray]  # by column


class Rows(NamedTuple):
    """The index of N rows, in the order of the files."""

    classes: list  # sorted
    places: np.ndarray  # (N,) of each row's class in `classes`
    keys: Keys
    file: np.ndarray | None  # (N,) place among the table's files; None without a stored index


@dataclass(frozen=True)
class FeatureTable:
    """A table of features in Parquet files. `name` stands in every error."""

    name: str
    directory: Directory
    files: tuple[str, ...]  # full paths
    schema: pa.Schema
    class_column: str
    keys: tuple[str, ...]
    width: int  # D
    below: tuple[tuple[str, int], ...] = ()  # (key, limit): only rows whose key is below its limit count
    # set by `with_index`, per class: its number of rows, and the places of its files if known
    counts: Mapping[int | str, int] = field(default_factory=dict)
    class_files: Mapping[int | str, tuple[int, ...]] = field(default_factory=dict)

    def index(self) -> Rows:
        """Read class and keys of every row."""
        columns = [self.class_column, *self.keys]
        stored = None if self.directory.kind == fs.FileType.File else stored_keys(self.directory, columns)
        if stored is None:
            table = self._rows(columns)
        else:
            limits = self._filter(None)
            table = stored if limits is None else stored.filter(limits)
        for name in table.column_names:
            if count := table[name].null_count:
                raise InputError(f"{self.name}: column {name} has {count} empty values; fill or drop them")
        encoded = table[self.class_column].combine_chunks().dictionary_encode()
        values = encoded.dictionary.to_pylist()
        classes = sorted(values)
        place = {value: i for i, value in enumerate(classes)}
        places = np.array([place[value] for value in values], dtype=np.int64)[encoded.indices.to_numpy()]
        file = None
        if FILE in table.column_names:
            file = file_places(table, [path.removeprefix(f"{self.directory.path}/") for path in self.files])
        return Rows(classes, places, {name: _column(table, name) for name in self.keys}, file)

    def with_index(self, rows: Rows) -> "FeatureTable":
        """Return this table with the counts and files of each class."""
        counts = dict(zip(rows.classes, np.bincount(rows.places).tolist(), strict=True))
        if rows.file is None:
            return replace(self, counts=counts)
        place, file = np.unique(np.stack([rows.places, rows.file]), axis=1)
        of_class = np.split(file, np.searchsorted(place, np.arange(1, len(rows.classes))))
        files = {name: tuple(map(int, places)) for name, places in zip(rows.classes, of_class, strict=True)}
        return replace(self, counts=counts, class_files=files)

    def read(self, classes: Sequence, limit: int | None = None) -> Iterator[tuple[Keys, np.ndarray]]:
        """Yield per class, in order, its keys and its features (n, D) float32, sorted by the keys.

        At most `limit` rows are in memory at a time, but at least one class. Raises InputError, with the row,
        for a feature of another length than the first, and for NaN, infinity or zeros.
        """
        for batch in self._batches(classes, limit):
            table = self._rows([self.class_column, *self.keys, FEATURE], batch)
            labels = _column(table, self.class_column)
            keys = {name: _column(table, name) for name in self.keys}
            features = self._features(table[FEATURE], labels, keys)
            del table
            order = np.lexsort((*reversed(list(keys.values())), labels))
            ordered = labels[order]
            for value in batch:
                rows = order[
                    np.searchsorted(ordered, value, "left") : np.searchsorted(ordered, value, "right")
                ]
                if len(rows) != (count := self.counts.get(value, len(rows))):
                    found = f"class {value} has {len(rows)} rows, its index {count}"
                    raise InputError(f"{self.name}: {self.directory.uri} is damaged: {found}")
                yield {name: column[rows] for name, column in keys.items()}, features[rows]

    def _batches(self, classes: Sequence, limit: int | None) -> Iterator[list]:
        if limit is None:
            yield list(classes)
            return
        batch, rows = [], 0
        for value in classes:
            if batch and rows + self.counts[value] > limit:
                yield batch
                batch, rows = [], 0
            batch.append(value)
            rows += self.counts[value]
        yield batch

    def _rows(self, columns: list[str], classes: Sequence | None = None) -> pa.Table:
        """Read the rows of these classes; None reads all."""
        options = {"format": FORMAT, "filesystem": self.directory.filesystem, "schema": self.schema}
        files, condition = list(self.files), self._filter(classes)
        if classes is not None and self.class_files:
            files = [
                files[place] for place in sorted({p for name in classes for p in self.class_files[name]})
            ]

        def read() -> pa.Table:
            groups = (files[start : start + MAX_OPEN_FILES] for start in range(0, len(files), MAX_OPEN_FILES))
            table = pa.concat_tables(
                pads.dataset(group, **options).to_table(columns=columns, filter=condition) for group in groups
            )
            table.select([self.class_column]).validate(full=True)  # text of a damaged file may be no UTF-8
            return table

        try:
            return self.directory.with_retries(read)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and (error.errno or not self.directory.is_local):
                raise
            why = one_line(str(error))[:200]
            raise InputError(f"{self.name}: {self.directory.uri} is damaged, no Parquet ({why})") from error

    def _filter(self, classes: Sequence | None) -> pc.Expression | None:
        terms = [pc.field(name) < limit for name, limit in self.below]
        if classes is not None:
            terms.append(pc.field(self.class_column).isin(pa.array(list(classes))))
        return functools.reduce(operator.and_, terms) if terms else None

    def _features(self, column: pa.ChunkedArray, labels: np.ndarray, keys: Keys) -> np.ndarray:
        """Return the column as an array (N, D) float32; raise InputError for an unusable row."""

        def error(row: int, problem: str) -> InputError:
            place = ", ".join([f"class {labels[row]!s}", *(f"{name} {keys[name][row]}" for name in keys)])
            return InputError(f"{self.name}: the feature of {place} {problem}")

        features, start = np.empty((len(column), self.width), np.float32), 0
        for chunk in column.chunks:
            lists = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
            lengths = pc.call_function("list_value_length", [lists]).fill_null(0)
            lengths = lengths.to_numpy(zero_copy_only=False)
            if (wrong := np.flatnonzero(lengths != self.width)).size:
                count = lengths[wrong[0]]
                problem = f"has {count} values, the first row's {self.width}; extract all with one model"
                raise error(start + int(wrong[0]), problem)
            values = lists.flatten().to_numpy(zero_copy_only=False)  # an empty value becomes NaN
            features[start : start + len(chunk)] = values.reshape(len(chunk), self.width)
            start += len(chunk)
        norms = np.einsum("nd,nd->n", features, features, dtype=np.float64)
        if (wrong := np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))).size:
            problem = "zero" if norms[wrong[0]] == 0 else "not finite"
            raise error(int(wrong[0]), f"is {problem}; extract it again or remove the row")
        return features


def _column(table: pa.Table, name: str) -> np.ndarray:
    values = table[name].to_numpy()
    return values.astype(str) if values.dtype == object else values
