"""Artefacts: a storage root, fingerprints, manifests, atomic completion, and whether all is as written.

    <root>/<noun>/<fingerprint>/part-00000.parquet …, manifest.json

The manifest is written last and at once, so a stage is either complete or not there. It names every file with
its size and checksum. Sizes are compared whenever an artefact is read as complete, since a lost part must not
give a smaller result. integrity.py compares checksums: before an artefact is continued, and to verify it.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NotRequired, TypedDict, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ims3_ray.display import first_few
from ims3_ray.errors import InputError

from . import schemas
from .directory import Directory, open_directory

FORMAT = 1
FORMAT_FILE = "format.json"
MANIFEST = "manifest.json"
PREVIOUS = "manifest.previous.json"  # of a damaged artefact, until it is complete again; in no manifest
UPDATE = "update ims3_ray or choose another storage"
READERS = 8  # threads that compute checksums
Result = TypeVar("Result")


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
    notes: NotRequired[dict[str, str]]  # of images for an audit: those that can't be read, and why
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
        return first_few((f"{name} {why}" for name, why in self.files.items()), most=3, show=str)

    def __reduce__(
        self,
    ) -> tuple[type[InputError], tuple[str]]:  # out of a Ray worker, as what a person reads
        return InputError, (str(self),)


def read_manifest(directory: Directory) -> Manifest | None:
    """Returns the manifest of a complete artefact, or None while it is not complete.

    Raises DamagedError if a file that it names is missing or has another size, or if the manifest itself is
    damaged; InputError if its format is newer.
    """
    manifest = read_manifest_file(directory)
    if manifest and (damaged := changed_files(directory, manifest["files"])):
        raise DamagedError(directory, damaged)
    return manifest


def read_manifest_file(directory: Directory, name: str = MANIFEST) -> Manifest | None:
    """As `read_manifest`, without a look at the files that the manifest names."""
    if not directory.exists(name):
        return None
    try:
        manifest = directory.read_json(name)
        version = int(manifest["format"])
        manifest["files"] = {file: int(size) for file, size in manifest["files"].items()}
        known_checksums(manifest)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedError(directory, {name: "is no manifest"}) from error
    if version > FORMAT:
        raise InputError(
            f"{(directory / name).uri}: format {version} is newer than {FORMAT}, which this version "
            f"reads; {UPDATE}"
        )
    return manifest


def known_checksums(manifest: Manifest) -> dict[str, str]:
    """Returns the checksums by name. Raises TypeError or LookupError if they are anything else."""
    kept = {str(entry["path"]): str(entry["sha256"]) for entry in manifest.get("images", [])}
    return kept | dict(manifest.get("checksums", {}))


def changed_files(directory: Directory, sizes: Mapping[str, int]) -> dict[str, str]:
    """Returns the files that are missing, or of another size than `sizes` says, each with the reason."""
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


def summary_of(manifest: Manifest) -> Summary:
    """Its part that is a summary."""
    m = manifest
    return {"rows": m["rows"], "unit": m["unit"], "seconds": m["seconds"], "rate": m["rate"]}


def complete(directory: Directory, details: Mapping[str, object]) -> Manifest:
    """Write the manifest, which makes the artefact complete: `details` beside every file's size and checksum.

    `details` may hold `checksums` that are known already; those of the other files are computed.
    """
    there = directory.files()
    files = {
        name: info.size
        for name, info in there.items()
        if name not in (MANIFEST, PREVIOUS) and not name.endswith(".tmp")
    }
    known = cast(Mapping[str, str], details.get("checksums", {}))
    with ThreadPoolExecutor(READERS) as pool:
        checksums = dict(
            zip(files, pool.map(lambda n: known.get(n) or directory.sha256(n), files), strict=True)
        )
    manifest = {"format": FORMAT, **details, "files": files, "checksums": checksums}
    directory.write_json(MANIFEST, manifest)
    if PREVIOUS in there:
        (directory / PREVIOUS).delete()
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
    directory: Directory, name: str, table: schemas.Table, columns: Sequence[str] | None = None
) -> schemas.Columns:
    """Returns the rows of a part; only `columns` are fetched if given. Raises InputError if it is damaged."""
    return _parse(directory, name, lambda stream: schemas.from_parquet(stream, table, columns))


def _parse(directory: Directory, name: str, parse: Callable[[pa.NativeFile], Result]) -> Result:
    """Returns `parse` of a Parquet file. Raises InputError if the file is damaged, after no retry.

    Arrow raises the same OSError for a damaged file and for trouble with the storage. In the first case
    parsing fails again with the file's bytes in memory.
    """

    def read() -> Result:
        with directory.filesystem.open_input_file(f"{directory.path}/{name}") as stream:
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


def unpacked_bytes(directory: Directory, name: str) -> int:
    """About how many bytes a part's rows take in memory; its last bytes alone are read."""

    def read() -> pq.FileMetaData:
        with directory.filesystem.open_input_file(f"{directory.path}/{name}") as stream:
            return pq.read_metadata(stream)

    metadata = directory.with_retries(read)
    return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


def row_groups(directory: Directory, name: str, column: str) -> Iterator[list[Any]]:
    """Yields a column of a Parquet file as Python's values, a row group at a time."""

    def parse(group: int, stream: pa.NativeFile) -> list[Any]:
        file = pq.ParquetFile(stream, page_checksum_verification=True)
        if group == file.num_row_groups:
            return []
        return file.read_row_group(group, columns=[column])[column].to_pylist()

    for group in itertools.count():
        if not (rows := _parse(directory, name, functools.partial(parse, group))):
            return
        yield rows


def read_rows(
    directory: Directory, table: schemas.Table, columns: list[str] | None = None
) -> schemas.Columns:
    """All rows of an artefact, parts in order; `columns` reads those alone."""
    return schemas.concatenate(read_part(directory, n, table, columns) for n in part_names(directory))
