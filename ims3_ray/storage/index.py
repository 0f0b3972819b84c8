"""An artefact's rows by their keys: these are read first, and what else of a row only where it is needed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .ahead import ahead
from .artifacts import Directory, part_names, read_part
from .tables import Columns, Table, concatenate

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


def read_index(directory: Directory, table: Table, keys: Sequence[str]) -> Index:
    """The index of all rows, in the order of the parts, by the columns `keys`."""
    files = part_names(directory)
    parts = list(ahead(lambda name: read_part(directory, name, table, keys), files, READERS))
    counts = [len(part[keys[0]]) for part in parts]
    file = np.repeat(np.arange(len(files), dtype=np.int32), counts)
    row = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    return Index(directory, table, tuple(files), concatenate(parts), file, row)
