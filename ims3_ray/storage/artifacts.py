"""Artefacts: a storage root, fingerprints, manifests, atomic completion, and whether all is as written.

    <root>/<noun>/<fingerprint>/part-00000.parquet …, manifest.json

The manifest is written last and at once, so a stage is either complete or not there. It names every file with
its size and checksum: sizes are compared whenever an artefact is read as complete, since a part that is lost
must not give a smaller result; checksums by `jobs/runs.py --verify`.
"""

import functools
import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NotRequired, TypedDict, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ims3_ray.errors import InputError
from ims3_ray.text import some

from . import tables
from .directory import Directory, open_directory

FORMAT = 1
FORMAT_FILE = "format.json"
MANIFEST = "manifest.json"
NOTES = ".notes.json"  # after a part's name: of its rows that had to be left out
UPDATE = "update ims3_ray or choose another storage"
READERS = 8  # threads that compute checksums
_logger = logging.getLogger(__name__)


def fingerprint(value: object) -> str:
    """Twelve hexadecimal digits for plain data, whatever the order of a mapping's keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def open_storage(location: str) -> Directory:
    """The storage root, checked to be writable and of a format that this version reads.

    Raises InputError for a root that can't be written, or that a newer version wrote.
    """
    root = open_directory(location)
    try:
        if check_format(root):
            root.write("writable", b"")
        else:
            root.write_json(FORMAT_FILE, {"format": FORMAT})
    except OSError as error:
        raise InputError(
            f"storage: {root.uri} can't be written ({error.strerror or error}); choose another storage=DIR"
        ) from error
    return root


def check_format(root: Directory) -> bool:
    """Whether the root says of which format it is; InputError where that is damaged or newer than FORMAT."""
    if not root.exists(FORMAT_FILE):
        return False
    try:
        written = root.read_json(FORMAT_FILE)["format"]
        is_newer = written > FORMAT
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"storage: {(root / FORMAT_FILE).uri} is damaged ({error}); remove it, and the next run writes "
            "it anew"
        ) from error
    if is_newer:
        raise InputError(
            f"storage: {root.uri} holds artefacts of format {written}, this version reads up to {FORMAT}; "
            f"{UPDATE}"
        )
    return True


class Summary(TypedDict):
    """What making an artefact came to."""

    rows: int
    unit: str  # of the rows
    seconds: float
    rate: float  # rows a second, of those made


class GpuUse(TypedDict):
    """GPUs that a stage's workers held at once, of those that were there, and what kept it from more."""

    used: int
    of: int
    limit: str


class Manifest(Summary):
    """manifest.json of a complete artefact, and what some stages add."""

    format: int
    files: dict[str, int]  # bytes by name
    checksums: NotRequired[dict[str, str]]  # SHA-256 by name; earlier versions kept none
    stage: str
    version: int
    fingerprint: str
    inputs: dict[str, str]  # by noun, the fingerprints of the artefacts read
    device: str
    gpus: NotRequired[GpuUse]
    images: NotRequired[list[dict[str, object]]]  # of a distilled set
    history: NotRequired[list[dict[str, float]]]  # of a training: by `step`, its metrics
    own_classes: NotRequired[list[str] | None]  # of an adapter
    frequency_shift: NotRequired[float | None]


class DamagedError(InputError):
    """An artefact that was complete and is not as it was written: `files`, why by name."""

    def __init__(self, directory: Directory, files: Mapping[str, str]):
        self.files = dict(files)
        self.finding = f"{directory.uri} is damaged: {self.words}"
        super().__init__(f"{self.finding}; the command that made it makes what is missing again")

    @property
    def words(self) -> str:
        return some((f"{name} {why}" for name, why in self.files.items()), most=3, show=str)

    def __reduce__(
        self,
    ) -> tuple[type[InputError], tuple[str]]:  # out of a Ray worker, as what a person reads
        return InputError, (str(self),)


def read_manifest(directory: Directory) -> Manifest | None:
    """The manifest of a complete artefact, or None while it is not complete.

    Raises DamagedError where a file that it names is not there or of another size, or where it is damaged
    itself; InputError for a newer format.
    """
    if not directory.exists(MANIFEST):
        return None
    try:
        manifest = directory.read_json(MANIFEST)
        version, sizes = int(manifest["format"]), dict(manifest["files"])
        _known_checksums(manifest)
    except (ValueError, LookupError, TypeError) as error:
        raise DamagedError(directory, {MANIFEST: "is no manifest"}) from error
    if version > FORMAT:
        raise InputError(
            f"{(directory / MANIFEST).uri}: format {version} is newer than {FORMAT}, which this version "
            f"reads; {UPDATE}"
        )
    if damaged := _changed(directory, sizes):
        raise DamagedError(directory, damaged)
    return manifest


def _known_checksums(manifest: Manifest) -> dict[str, str]:
    """By name; TypeError or LookupError where there are none but something else."""
    kept = {str(entry["path"]): str(entry["sha256"]) for entry in manifest.get("images", [])}
    return kept | dict(manifest.get("checksums", {}))


def _changed(directory: Directory, sizes: Mapping[str, int]) -> dict[str, str]:
    """Files that are not there, or of another size than `sizes` says."""
    there = directory.files()
    damaged = {}
    for name, size in sizes.items():
        if name == MANIFEST:  # two drivers at once, with an earlier version, left it in its own list
            continue
        if name not in there:
            damaged[name] = "is not there"
        elif there[name].size != size:
            damaged[name] = f"has {there[name].size} bytes, not {size}"
    return damaged


def verify(directory: Directory) -> tuple[dict[str, str], int]:
    """(damaged files of a complete artefact: why, files whose checksum it never kept); every byte is read."""
    try:
        manifest = read_manifest(directory)
    except DamagedError as error:
        return error.files, 0
    if manifest is None:
        return {}, 0
    kept = _known_checksums(manifest)
    known = {name: kept[name] for name in manifest["files"] if name in kept}
    with ThreadPoolExecutor(READERS) as pool:
        found = dict(zip(known, pool.map(directory.sha256, known), strict=True))
    why = "holds other bytes than were written"
    damaged = {name: why for name, checksum in known.items() if found[name] != checksum}
    return damaged, len(set(manifest["files"]) - set(known) - {MANIFEST})


def mend(directory: Directory, damage: Iterable[str]) -> None:
    """Make a damaged artefact one that is not complete: without its manifest and without these files.

    A part goes with its notes: it is made again, and they with it.
    """
    there = directory.files()
    for name in (MANIFEST, *(whole for named in damage for whole in (named, named.removesuffix(NOTES)))):
        if name in there:  # else it may lead anywhere
            (directory / name).delete()


def summary_of(manifest: Manifest) -> Summary:
    """Its part that is a summary."""
    m = manifest
    return {"rows": m["rows"], "unit": m["unit"], "seconds": m["seconds"], "rate": m["rate"]}


def complete(directory: Directory, details: Mapping[str, object]) -> Manifest:
    """Write the manifest, which makes the artefact complete: `details` beside every file's size and checksum.

    `details` may hold `checksums` that are known already; those of the other files are computed.
    """
    files = {
        name: info.size
        for name, info in directory.files().items()
        if name != MANIFEST and not name.endswith(".tmp")
    }
    known = cast(Mapping[str, str], details.get("checksums", {}))
    with ThreadPoolExecutor(READERS) as pool:
        checksums = dict(
            zip(files, pool.map(lambda n: known.get(n) or directory.sha256(n), files), strict=True)
        )
    manifest = {"format": FORMAT, **details, "files": files, "checksums": checksums}
    directory.write_json(MANIFEST, manifest)
    return cast(Manifest, manifest)


def part_names(directory: Directory) -> list[str]:
    """The Parquet parts of an artefact, in order: those that its manifest names, all of which are there.

    While it is not complete, those that are there. DamagedError as of `read_manifest`.
    """
    manifest = read_manifest(directory)
    return [
        name for name in (manifest["files"] if manifest else directory.files()) if name.endswith(".parquet")
    ]


def read_part(
    directory: Directory, name: str, table: tables.Table, columns: Sequence[str] | None = None
) -> tables.Columns:
    """The rows of a part; of `columns` those alone are fetched. InputError where the file is damaged."""

    def read() -> tables.Columns:
        with directory.filesystem.open_input_file(f"{directory.path}/{name}") as stream:
            return tables.from_parquet(stream, table, columns)

    try:
        return directory.patiently(read)
    except (pa.ArrowException, OSError) as error:
        is_arrows = isinstance(error, pa.ArrowException) or (directory.is_local and error.errno is None)
        if not is_arrows:
            raise
        raise InputError(
            f"{(directory / name).uri}: is damaged, no Parquet ({error}); remove it, and the command that "
            "made it makes it again"
        ) from error


def unpacked_bytes(directory: Directory, name: str) -> int:
    """About how many bytes a part's rows take in memory; its last bytes alone are read."""

    def read() -> pq.FileMetaData:
        with directory.filesystem.open_input_file(f"{directory.path}/{name}") as stream:
            return pq.read_metadata(stream)

    metadata = directory.patiently(read)
    return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


def row_groups(directory: Directory, name: str, column: str) -> Iterator[list[Any]]:
    """A column of a Parquet file as Python's values, a row group at a time."""

    def read(group: int) -> list[Any]:
        with directory.filesystem.open_input_file(f"{directory.path}/{name}") as stream:
            file = pq.ParquetFile(stream)
            if group == file.num_row_groups:
                return []
            return file.read_row_group(group, columns=[column])[column].to_pylist()

    for group in itertools.count():
        if not (rows := directory.patiently(functools.partial(read, group))):
            return
        yield rows


def read_rows(directory: Directory, table: tables.Table, columns: list[str] | None = None) -> tables.Columns:
    """All rows of an artefact, parts in order; `columns` reads those alone."""
    return tables.concatenate(read_part(directory, n, table, columns) for n in part_names(directory))
