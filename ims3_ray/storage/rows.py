"""Reads the rows of an artefact: all of them, part by part, or first the keys and then only the rows needed.

`index.arrow` beside the parts holds the keys of all rows. It is written after the last part. An object store
then serves all keys in one request, instead of several requests per part.
"""

import functools
import io
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import feather

from ims3_ray.errors import InputError

from .artifacts import Directory, read_checked, read_manifest
from .schemas import Columns, Table, concatenate, from_arrow, from_parquet, to_arrow

INDEX = "index.arrow"
FILE = "file"  # column of the index: the part that holds the row
READERS = 16  # parts whose keys are read at a time
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Index:
    """Keys and locations of N rows of an artefact. It is small enough to be sent to a task."""

    directory: Directory
    table: Table
    files: tuple[str, ...]
    keys: Columns
    file: np.ndarray  # (N,) int32, index into `files`
    row: np.ndarray  # (N,) int32, row in its file
    column: str = "feature"  # what `read` returns by default

    def __len__(self) -> int:
        return len(self.row)

    @property
    def labels(self) -> np.ndarray:
        """Class labels (N,), if `label` is among the keys."""
        return self.keys["label"]

    def take(self, places: np.ndarray) -> "Index":
        """Returns the index of the rows at `places`, in that order."""
        keys = {name: values[places] for name, values in self.keys.items()}
        used, file = np.unique(self.file[places], return_inverse=True)
        files = tuple(self.files[place] for place in used)
        return replace(self, files=files, keys=keys, file=file.astype(np.int32), row=self.row[places])

    def read(self, column: str | None = None) -> np.ndarray:
        """Returns a column's values in the order of the rows. At most one part is in memory beside them."""
        column, values = column or self.column, np.empty(0)
        order = np.argsort(self.file, kind="stable")
        starts = np.searchsorted(self.file[order], np.arange(len(self.files) + 1))
        for name, (start, stop) in zip(self.files, itertools.pairwise(starts), strict=True):
            places = order[start:stop]
            of_part = read_part(self.directory, name, self.table, [column])[column][self.row[places]]
            if not len(values):
                values = np.empty((len(self), *of_part.shape[1:]), of_part.dtype)
            values[places] = of_part
        assert len(values), "an index without rows"
        return values


def read_index(directory: Directory, table: Table, keys: Sequence[str]) -> Index:
    """Returns the index of all rows, in the order of the parts, with the columns `keys`."""
    files = part_names(directory)
    if stored := stored_keys(directory, keys):
        file = file_places(stored, files)
        counts = np.bincount(file, minlength=len(files))
        rows = from_arrow(stored, {name: table[name] for name in keys})
    else:  # written by a release without index files
        parts = list(prefetch(lambda name: read_part(directory, name, table, keys), files, READERS))
        counts = np.array([len(part[keys[0]]) for part in parts])
        file = np.repeat(np.arange(len(files), dtype=np.int32), counts)
        rows = concatenate(parts)
    row = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    return Index(directory, table, tuple(files), rows, file, row)


def locate(directory: Directory, table: Table, places: Sequence[tuple[str, int]], column: str) -> Index:
    """Returns an index without keys of the rows at `places`: pairs of a part's name and a row in it."""
    files = sorted({name for name, _ in places})
    number = {name: i for i, name in enumerate(files)}
    file, row = (
        np.array(v, np.int32) for v in ([number[name] for name, _ in places], [r for _, r in places])
    )
    return Index(directory, table, tuple(files), {}, file, row, column)


def read_together(parts: Sequence[Index]) -> list[np.ndarray]:
    """Returns `read()` of each index. All are of one column of one artefact: each part is read only once."""
    files = sorted({name for part in parts for name in part.files})
    number = {name: i for i, name in enumerate(files)}
    file = [np.array([number[name] for name in part.files], np.int32)[part.file] for part in parts]
    row = np.concatenate([part.row for part in parts])
    whole = replace(parts[0], files=tuple(files), keys={}, file=np.concatenate(file), row=row)
    return np.split(whole.read(), np.cumsum([len(part) for part in parts])[:-1])


def places_by_class(labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """Returns the places of each class's rows, ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, num_classes)))


def stored_keys(directory: Directory, keys: Sequence[str]) -> pa.Table | None:
    """Returns the columns `keys` and FILE of all rows of a complete artefact; None if it has no index."""
    manifest = read_manifest(directory)
    if not manifest or INDEX not in manifest["files"]:
        return None
    data = pa.BufferReader(read_checked(directory, INDEX, manifest))
    return feather.read_table(data, columns=[*keys, FILE])


def file_places(stored: pa.Table, files: Sequence[str]) -> np.ndarray:
    """Returns the index into `files` of the part that holds each row of `stored_keys` (N,)."""
    names, place = stored[FILE].combine_chunks(), {name: i for i, name in enumerate(files)}
    places = np.array([place[name] for name in names.dictionary.to_pylist()], np.int32)
    return places[names.indices.to_numpy()]


def pack_keys(columns: Columns, table: Table) -> bytes:
    """Returns the key columns of a part: scalars, but not encoded images."""
    keys = _keys(table)
    return _packed(to_arrow({name: columns[name] for name in keys}, keys))


def pack_part_keys(part: bytes, table: Table) -> bytes:
    """Returns `pack_keys` of a part's file."""
    return pack_keys(from_parquet(pa.BufferReader(part), _keys(table)), table)


def write_index(out: Directory, keys: Mapping[str, bytes]) -> None:
    """Write INDEX. `keys` maps the name of every part in `out` to its `pack_keys`."""
    parts = []
    for name in sorted(keys):
        part = feather.read_table(pa.BufferReader(keys[name]))
        file = pa.DictionaryArray.from_arrays(np.zeros(len(part), np.int32), [name])
        parts.append(part.append_column(FILE, file))
    out.write(INDEX, _packed(pa.concat_tables(parts).unify_dictionaries().combine_chunks()))


def _keys(table: Table) -> Table:
    return {name: column for name, column in table.items() if not column.shape and column.dtype != "bytes"}


def _packed(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    feather.write_feather(rows, sink, compression="zstd")
    return sink.getvalue()


def part_names(directory: Directory) -> list[str]:
    """Returns the Parquet parts of an artefact in order: of a complete one, those that its manifest lists.

    Raises DamagedError as `read_manifest` does.
    """
    manifest = read_manifest(directory)
    return [
        name for name in (manifest["files"] if manifest else directory.files()) if name.endswith(".parquet")
    ]


def read_part(directory: Directory, name: str, table: Table, columns: Sequence[str] | None = None) -> Columns:
    """Returns the rows of a part, or only their `columns`. Raises InputError if the part is damaged."""
    return _parse(directory, name, lambda stream: from_parquet(stream, table, columns))


def read_rows(directory: Directory, table: Table, columns: list[str] | None = None) -> Columns:
    """Returns all rows of an artefact, parts in order, or only their `columns`."""
    return concatenate(read_part(directory, name, table, columns) for name in part_names(directory))


def row_groups(directory: Directory, name: str, column: str) -> Iterator[list[Any]]:
    """Yields a column of a Parquet file as Python values, one list per row group."""

    def parse(group: int, stream: pa.NativeFile) -> list[Any]:
        file = pq.ParquetFile(stream, page_checksum_verification=True)
        if group == file.num_row_groups:
            return []
        return file.read_row_group(group, columns=[column])[column].to_pylist()

    for group in itertools.count():
        if not (rows := _parse(directory, name, functools.partial(parse, group))):
            return
        yield rows


def memory_bytes(directory: Directory, name: str) -> int:
    """Returns about how much memory the rows of a part take. Only the footer of the file is read."""

    def read() -> pq.FileMetaData:
        with directory.open_file(name) as stream:
            return pq.read_metadata(stream)

    metadata = directory.with_retries(read)
    return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


def _parse(directory: Directory, name: str, parse: Callable[[pa.NativeFile], Result]) -> Result:
    """Returns `parse` of a Parquet file. Raises InputError if the file is damaged, without a retry.

    Arrow raises the same OSError for a damaged file and for a failing storage. If the file is damaged,
    parsing its bytes in memory fails too.
    """

    def read() -> Result:
        with directory.open_file(name) as stream:
            try:
                return parse(stream)
            except (pa.ArrowException, ValueError):
                pass
            except OSError as error:
                if error.errno is not None:
                    raise
        data = directory.read(name)
        try:
            return parse(pa.BufferReader(data))
        except (pa.ArrowException, ValueError, OSError) as error:
            raise InputError(
                f"{(directory / name).uri}: is damaged, no Parquet ({error}); remove it, and the command "
                "that made it makes it again"
            ) from error

    return directory.with_retries(read)


def prefetch(read: Callable[[Item], Result], items: Iterable[Item], limit: int) -> Iterator[Result]:
    """Yields `read` of every item, in order. Threads read at most `limit` items ahead of the one in use."""
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(limit) as pool:
        for item in items:
            if len(pending) == limit:
                yield pending.popleft().result()
            pending.append(pool.submit(read, item))
        while pending:
            yield pending.popleft().result()
