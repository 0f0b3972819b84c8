"""Features in Parquet, read by class: a run's own candidates and real images, or anybody's.

    candidates   class (or label), subgroup, index, feature (D) real         class (or label), feature (D): a
    row a real image, or a row a class where they are centroids already

Classes are strings or integers, features lists of numbers of one length. What is read is what a class needs:
of a run's own artefacts the files that hold it, by their index; of anybody's, row groups without it are
skipped, so that files sorted by class cost a reader its own classes alone.
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
FILES = 256  # that are open at once: a data set keeps the footers of all of its files
Keys = dict[str, np.ndarray]  # of rows, by column


class Rows(NamedTuple):
    """What an index says of N rows, in the files' order."""

    classes: list  # sorted
    places: np.ndarray  # (N,) of their classes among these
    keys: Keys
    file: np.ndarray | None  # (N,) place among the table's files; None where it is not known


@dataclass(frozen=True)
class FeatureTable:
    """Where the rows of a table lie. `name` stands in every error."""

    name: str
    directory: Directory
    files: tuple[str, ...]  # full paths
    schema: pa.Schema
    class_column: str
    keys: tuple[str, ...]
    width: int  # D
    below: tuple[tuple[str, int], ...] = ()  # (key, limit): rows whose key is not below it count for nothing
    # of a table that was `located`: by class, its rows, and the places of the files that hold them, if known
    counts: Mapping[int | str, int] = field(default_factory=dict)
    holders: Mapping[int | str, tuple[int, ...]] = field(default_factory=dict)

    def index(self) -> Rows:
        """Where every row belongs."""
        table = self._index()
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
        return Rows(
            classes, places, {name: self._values(table, name) for name in self.keys}, self._file(table)
        )

    def located(self, rows: Rows) -> "FeatureTable":
        """The same, knowing from its index what each class takes."""
        counts = dict(zip(rows.classes, np.bincount(rows.places).tolist(), strict=True))
        if rows.file is None:
            return replace(self, counts=counts)
        place, file = np.unique(np.stack([rows.places, rows.file]), axis=1)
        of_class = np.split(file, np.searchsorted(place, np.arange(1, len(rows.classes))))
        holders = {name: tuple(map(int, files)) for name, files in zip(rows.classes, of_class, strict=True)}
        return replace(self, counts=counts, holders=holders)

    def _index(self) -> pa.Table:
        columns = [self.class_column, *self.keys]
        stored = None if self.directory.kind == fs.FileType.File else stored_keys(self.directory, columns)
        if stored is None:
            return self._rows(columns)
        wanted = self._wanted(None)
        return stored if wanted is None else stored.filter(wanted)

    def _file(self, table: pa.Table) -> np.ndarray | None:
        if FILE not in table.column_names:
            return None
        return file_places(table, [path.removeprefix(f"{self.directory.path}/") for path in self.files])

    def read(
        self, classes: Sequence, limit: int | None = None
    ) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """For each of `classes`, in their order, its keys and its features (n, D) float32, in the order of
        the keys.

        At most `limit` rows are in memory at a time, and never fewer than a class. Raises InputError, naming
        the row, for a feature of another length than the first, of NaN or infinity, or of zeros.
        """
        for batch in self._batches(classes, limit):
            table = self._rows([self.class_column, *self.keys, FEATURE], batch)
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
        batch, rows = [], 0
        for value in classes:
            if batch and rows + self.counts[value] > limit:
                yield batch
                batch, rows = [], 0
            batch.append(value)
            rows += self.counts[value]
        yield batch

    def _rows(self, columns: list[str], classes: Sequence | None = None) -> pa.Table:
        """The rows of these classes, or all."""
        given = {"format": "parquet", "filesystem": self.directory.filesystem, "schema": self.schema}
        files, wanted = self._holding(classes), self._wanted(classes)

        def read() -> pa.Table:
            some = (files[at : at + FILES] for at in range(0, len(files), FILES))
            table = pa.concat_tables(
                pads.dataset(those, **given).to_table(columns=columns, filter=wanted) for those in some
            )
            table.select([self.class_column]).validate(full=True)  # a damaged file's text may be no UTF-8
            return table

        try:
            return self.directory.with_retries(read)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and (error.errno or not self.directory.is_local):
                raise
            why = one_line(str(error))[:200]
            raise InputError(f"{self.name}: {self.directory.uri} is damaged, no Parquet ({why})") from error

    def _holding(self, classes: Sequence | None) -> list[str]:
        if classes is None or not self.holders:
            return list(self.files)
        places = sorted({place for value in classes for place in self.holders[value]})
        return [self.files[place] for place in places]

    def _wanted(self, classes: Sequence | None) -> pc.Expression | None:
        terms = [pc.field(name) < limit for name, limit in self.below]
        if classes is not None:
            terms.append(pc.field(self.class_column).isin(pa.array(list(classes))))
        return functools.reduce(operator.and_, terms) if terms else None

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
