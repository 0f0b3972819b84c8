"""An artefact's rows by their keys: these are read first, and what else of a row only where it is needed.

The keys of all rows lie in a file of their own beside the parts, `index.arrow`, written when the last part is
there: one request to an object store, where the parts' would be several for each of thousands.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from pyarrow import feather

from ims3_ray.errors import InputError

from .artifacts import Directory, known_checksums, part_names, read_manifest, read_part
from .prefetch import ahead
from .schemas import Columns, Table, concatenate, from_arrow, from_parquet, to_arrow

INDEX = "index.arrow"
FILE = "file"  # its column that says in which part a row lies
READERS = 16  # parts whose keys are read at a time


@dataclass(frozen=True)
class Index:
    """N rows of an artefact: their keys, and where each lies. Small enough to be sent to a task."""

    directory: Directory
    table: Table
    files: tuple[str, ...]
    keys: Columns
    file: np.ndarray  # (N,) int32, place among `files`
    row: np.ndarray  # (N,) int32, in its file

    def __len__(self) -> int:
        return len(self.row)

    def at(self, places: np.ndarray) -> "Index":
        """The rows at these places alone."""
        keys = {name: values[places] for name, values in self.keys.items()}
        known, file = np.unique(self.file[places], return_inverse=True)
        files = tuple(self.files[place] for place in known)
        return Index(self.directory, self.table, files, keys, file.astype(np.int32), self.row[places])

    def read(self, column: str) -> np.ndarray:
        """The column's values, in the order of the rows; no more than a part is in memory beside them."""
        values: np.ndarray | None = None
        for places, part in self._parts([column]):
            of_part = part[column][self.row[places]]
            if values is None:
                values = np.empty((len(self), *of_part.shape[1:]), of_part.dtype)
            values[places] = of_part
        assert values is not None, "an index of no rows"
        return values

    def _parts(self, columns: Sequence[str]) -> Iterator[tuple[np.ndarray, Columns]]:
        """Places of the rows in each file, and the file's rows."""
        order = np.argsort(self.file, kind="stable")
        starts = np.searchsorted(self.file[order], np.arange(len(self.files) + 1))
        for name, (start, stop) in zip(self.files, pairwise(starts), strict=True):
            yield order[start:stop], read_part(self.directory, name, self.table, columns)


def joined(parts: Sequence[Index]) -> Index:
    """The rows of several, of the same artefact, one after another."""
    files = sorted({name for part in parts for name in part.files})
    place = {name: i for i, name in enumerate(files)}
    file = [np.array([place[name] for name in part.files], np.int32)[part.file] for part in parts]
    keys = concatenate(part.keys for part in parts)
    row = np.concatenate([part.row for part in parts])
    return Index(parts[0].directory, parts[0].table, tuple(files), keys, np.concatenate(file), row)


def read_index(directory: Directory, table: Table, keys: Sequence[str]) -> Index:
    """The index of all rows, in the order of the parts, by the columns `keys`."""
    files = part_names(directory)
    if stored := stored_keys(directory, keys):
        file = file_places(stored, files)
        counts = np.bincount(file, minlength=len(files))
        rows = from_arrow(stored, {name: table[name] for name in keys})
    else:  # of a release that wrote none
        parts = list(ahead(lambda name: read_part(directory, name, table, keys), files, READERS))
        counts = np.array([len(part[keys[0]]) for part in parts])
        file = np.repeat(np.arange(len(files), dtype=np.int32), counts)
        rows = concatenate(parts)
    row = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    return Index(directory, table, tuple(files), rows, file, row)


def stored_keys(directory: Directory, keys: Sequence[str]) -> pa.Table | None:
    """Returns the columns `keys` of all rows, and FILE, of a complete artefact; None if it has no index.

    Raises InputError if the index has another checksum than in the manifest: its format has none of its own.
    """
    manifest = read_manifest(directory)
    if not manifest or INDEX not in manifest["files"]:
        return None
    data = directory.read(INDEX)
    if hashlib.sha256(data).hexdigest() != known_checksums(manifest).get(INDEX):
        raise InputError(
            f"{(directory / INDEX).uri}: is damaged; remove it, and the command that made it makes it again"
        )
    return feather.read_table(pa.BufferReader(data), columns=[*keys, FILE])


def file_places(stored: pa.Table, files: Sequence[str]) -> np.ndarray:
    """Of every row of `stored_keys` (N,), the place of its part among `files`."""
    names, place = stored[FILE].combine_chunks(), {name: i for i, name in enumerate(files)}
    known = np.array([place[name] for name in names.dictionary.to_pylist()], np.int32)
    return known[names.indices.to_numpy()]


def keys_of(columns: Columns, table: Table) -> bytes:
    """Of a part's columns those that are keys, plain values a row, as they travel."""
    keys = _keys(table)
    return _packed(to_arrow({name: columns[name] for name in keys}, keys))


def keys_in(part: bytes, table: Table) -> bytes:
    """Returns the `keys_of` a part's bytes."""
    keys = _keys(table)
    return _packed(to_arrow(from_parquet(pa.BufferReader(part), keys), keys))


def write_index(out: Directory, keys: Mapping[str, bytes]) -> None:
    """Write INDEX: by name, the `keys_of` every part in `out`."""
    parts = []
    for name in sorted(keys):
        part = feather.read_table(pa.BufferReader(keys[name]))
        file = pa.DictionaryArray.from_arrays(np.zeros(len(part), np.int32), [name])
        parts.append(part.append_column(FILE, file))
    out.write(INDEX, _packed(pa.concat_tables(parts).unify_dictionaries().combine_chunks()))


def _keys(table: Table) -> Table:
    """Plain values, but for encoded images."""
    return {name: column for name, column in table.items() if not column.shape and column.dtype != "bytes"}


def _packed(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    feather.write_feather(rows, sink, compression="zstd")
    return sink.getvalue()
