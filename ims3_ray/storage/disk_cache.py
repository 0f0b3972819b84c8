"""Rows of artefacts on this machine's own disk, so that a training reads batches and needs no memory for all.

    <temporary folder>/ims3-rows-<user>/<key>/<column>.bin, rows.json   rows.json is written last
    <temporary folder>/ims3-rows-<user>/<key>.fill, <key>.use           locks, which end with their process

The first process of a machine fills the folder from the storage, part by part, while the others wait. The
last process that closes it removes it, unless it keeps it for later ones. Folders that were kept, or left by
killed processes, are reused by their key and removed before another is filled. A batch is read at its offset
in the file. A reader of all rows maps the file; the machine's processes share its pages.
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
    columns: dict[str, tuple[str, list[int]]]  # name → dtype and shape of a row's value


class CachedRows:
    """Random access to N rows on disk. Call `close` when no row is needed any more."""

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
        """Returns the shape of a row's value."""
        return self._columns[column][1]

    def read(self, column: str, rows: Iterable[int], inner: Iterable[int] | None = None) -> np.ndarray:
        """Returns the values (B, …) of `rows`, or value[i] of each for the i in `inner` (B,)."""
        dtype, shape = self._columns[column]
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        starts = [int(row) * size for row in rows]
        if inner is not None:
            size, shape = size // shape[0], shape[1:]
            starts = [start + int(place) * size for start, place in zip(starts, inner, strict=True)]
        data = b"".join(os.pread(self._files[column], size, start) for start in starts)
        return np.frombuffer(data, dtype).reshape(len(starts), *shape)

    def mapped(self, column: str) -> np.ndarray:
        """Returns a memory map of the column's values (N, …), valid until the rows are closed."""
        dtype, shape = self._columns[column]
        if not self.count:
            return np.empty((0, *shape), dtype)
        # mode "c" (copy on write): torch warns about read-only arrays
        return np.memmap(_file(self._folder, column), dtype, mode="c", shape=(self.count, *shape))

    def close(self, *, keep: bool = False) -> None:
        """Remove the rows if no other process uses them, unless `keep`."""
        for number in self._files.values():
            os.close(number)
        self._files = {}
        if not keep and _try_lock(self._use):
            shutil.rmtree(self._folder, ignore_errors=True)
        self._use.close()


def open_cache(key: str, parts: Parts, needed: float, remedy: str = REMEDY) -> CachedRows:
    """Returns the rows of `parts()`, tables of the same columns. `key` identifies them.

    Raises InputError, which ends with `remedy`, if the temporary folder lacks `needed` bytes.
    """
    root = cache_folder()
    with _locked(root / f"{key}.fill"):
        use = (root / f"{key}.use").open("a+b")
        fcntl.flock(use, fcntl.LOCK_SH)
        folder = root / key
        if not (folder / INDEX).exists():
            remove_unused({entry.name for entry in root.iterdir() if entry.is_dir()} - {key})
            check_disk_space(needed, remedy)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _fill(folder, parts())
    return CachedRows(folder, use)


def remove_unused(keys: Iterable[str]) -> None:
    """Remove those rows that no process of this machine uses or fills."""
    root = cache_folder()
    for key in keys:
        with (root / f"{key}.use").open("a+b") as use:
            if _try_lock(use):
                shutil.rmtree(root / key, ignore_errors=True)


def cache_folder() -> Path:
    """Returns this user's folder below TMPDIR. Other users can't read it."""
    root = Path(tempfile.gettempdir(), f"ims3-rows-{os.getuid()}")
    root.mkdir(mode=0o700, exist_ok=True)
    assert root.stat().st_uid == os.getuid(), f"{root} is another user's"
    return root


def check_disk_space(needed: float, remedy: str = REMEDY) -> None:
    """Raise InputError if the temporary folder lacks `needed` bytes. Cached rows count as free space."""
    root = cache_folder()
    room = shutil.disk_usage(root).free + cached_bytes()
    if room < needed:
        raise InputError(
            f"{root} has room for {room / 1e9:.1f} GB, and the rows to train on take {needed / 1e9:.1f} GB "
            f"of each node's own disk; {remedy}"
        )


def cached_bytes() -> int:
    """Returns the size of all cached rows on this machine."""
    size = 0
    for folder, _, names in os.walk(cache_folder()):
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
    new = folder / f"{INDEX}.new"
    new.write_text(json.dumps(layout))
    new.replace(folder / INDEX)  # on a full disk, nothing is half-written


def _file(folder: Path, column: str) -> Path:
    return folder / f"{column}.bin"


def _try_lock(use: IO[bytes]) -> bool:
    """Take the exclusive lock. Returns False if another process holds the lock."""
    try:
        fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    with path.open("a+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
