"""Rows of artefacts on this machine's own disk, read a batch at a time: a training's data need no memory.

    <temporary folder>/ims3-rows-<user>/<key>/<column>.bin, rows.json   the second written last
    <temporary folder>/ims3-rows-<user>/<key>.fill, <key>.use           locks, which end with their process

The first process of a machine fills the folder from the storage, part by part, while the others wait; the
last that closes it removes it, unless it keeps it for others to come. What is kept, or processes that were
killed left, serves whoever goes on with the same rows, and goes before others are filled in. A batch is read
at its place in the file; whoever needs all rows maps the file, whose pages the machine's processes share.
"""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import IO, TypedDict

import numpy as np

from ims3_ray.errors import InputError

from .schemas import Columns

INDEX = "rows.json"
REMEDY = "free some, or set TMPDIR to a larger disk where the nodes are started"
Parts = Callable[[], Iterable[Columns]]


class Layout(TypedDict):
    rows: int
    columns: dict[str, tuple[str, list[int]]]  # dtype and shape of a row's value, by name


class LocalRows:
    """N rows, open for reading. `close` it when no row is needed any more."""

    def __init__(self, folder: Path, use: IO[bytes]):
        self._folder, self._use = folder, use
        layout: Layout = json.loads((folder / INDEX).read_text())
        self.count = layout["rows"]
        self._columns = {
            name: (np.dtype(kind), tuple(shape)) for name, (kind, shape) in layout["columns"].items()
        }
        self._files = {name: os.open(_file(folder, name), os.O_RDONLY) for name in self._columns}
        for number in self._files.values():
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_RANDOM)

    def shape(self, column: str) -> tuple[int, ...]:
        """Of a row's value."""
        return self._columns[column][1]

    def read(self, column: str, rows: Iterable[int], inner: Iterable[int] | None = None) -> np.ndarray:
        """The values (B, …) at `rows`; with `inner` (B,), of each the one at that place of its first axis."""
        dtype, shape = self._columns[column]
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        starts = [int(row) * size for row in rows]
        if inner is not None:
            size, shape = size // shape[0], shape[1:]
            starts = [start + int(place) * size for start, place in zip(starts, inner, strict=True)]
        data = b"".join(os.pread(self._files[column], size, start) for start in starts)
        return np.frombuffer(data, dtype).reshape(len(starts), *shape)

    def mapped(self, column: str) -> np.ndarray:
        """The column's values (N, …), read where they are touched; until the rows are closed."""
        dtype, shape = self._columns[column]
        if not self.count:
            return np.empty((0, *shape), dtype)
        # a copy of what is written to, which nobody does: torch warns of arrays that can't be
        return np.memmap(_file(self._folder, column), dtype, mode="c", shape=(self.count, *shape))

    def close(self, *, keep: bool = False) -> None:
        """Remove the rows where no other process uses them, unless they are kept for others to come."""
        for number in self._files.values():
            os.close(number)
        self._files = {}
        if not keep and _try_alone(self._use):
            shutil.rmtree(self._folder, ignore_errors=True)
        self._use.close()


def open_cache(key: str, parts: Parts, needed: float, remedy: str = REMEDY) -> LocalRows:
    """The rows of `parts()`, tables of the same columns, called `key` as no others are.

    InputError, which ends with `remedy`, where this machine's temporary folder lacks the `needed` bytes.
    """
    root = rows_folder()
    with _locked(root / f"{key}.fill"):
        use = (root / f"{key}.use").open("ab")
        fcntl.flock(use, fcntl.LOCK_SH)
        folder = root / key
        if not (folder / INDEX).exists():
            remove_unused({entry.name for entry in root.iterdir() if entry.is_dir()} - {key})
            refuse_full_disk(needed, remedy)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _fill(folder, parts())
    return LocalRows(folder, use)


def remove_unused(keys: Iterable[str]) -> None:
    """Remove rows that no process of this machine uses, nor fills in."""
    root = rows_folder()
    for key in keys:
        with (root / f"{key}.use").open("ab") as use:
            if _try_alone(use):
                shutil.rmtree(root / key, ignore_errors=True)


def rows_folder() -> Path:
    """Where this user's rows lie on this machine, below TMPDIR; nobody else can read them."""
    root = Path(tempfile.gettempdir(), f"ims3-rows-{os.getuid()}")
    root.mkdir(mode=0o700, exist_ok=True)
    assert root.stat().st_uid == os.getuid(), f"{root} is another user's"
    return root


def refuse_full_disk(needed: float, remedy: str = REMEDY) -> None:
    """InputError where this machine's temporary folder lacks `needed` bytes, old rows in it not counted."""
    root = rows_folder()
    room = shutil.disk_usage(root).free + stored_bytes()
    if room < needed:
        raise InputError(
            f"{root} has room for {room / 1e9:.1f} GB, and the rows to train on take {needed / 1e9:.1f} GB "
            f"of each node's own disk; {remedy}"
        )


def stored_bytes() -> int:
    """What all rows on this machine's disk take."""
    size = 0
    for folder, _, names in os.walk(rows_folder()):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                size += os.stat(f"{folder}/{name}").st_size
    return size


def _fill(folder: Path, parts: Iterable[Columns]) -> None:
    layout: Layout = {"rows": 0, "columns": {}}
    with contextlib.ExitStack() as files:
        streams: dict[str, IO[bytes]] = {}
        for part in parts:
            for name, values in part.items():
                if name not in streams:
                    streams[name] = files.enter_context(_file(folder, name).open("wb"))
                    layout["columns"][name] = values.dtype.str, list(values.shape[1:])
                assert layout["columns"][name] == (values.dtype.str, list(values.shape[1:])), name
                streams[name].write(np.ascontiguousarray(values).data)
            layout["rows"] += len(next(iter(part.values())))
    (folder / INDEX).write_text(json.dumps(layout))


def _file(folder: Path, column: str) -> Path:
    return folder / f"{column}.bin"


def _try_alone(use: IO[bytes]) -> bool:
    """Whether nobody else holds the lock."""
    try:
        fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    with path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
